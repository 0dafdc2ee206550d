"""Numbers of the runs."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a student is made and how an edge model is trained from it.

    Attributes:
        num_layers: Decoder layers.
        train_images: Images to train on.
        test_images: Images whose questions are asked at the end.
        off_images: Of those, the ones that are asked again with parts switched off.
        words_steps: Most steps of the language model on words in the place of visual tokens.
        words_loss: Mean loss that ends them.
        words_rate: Their peak rate.
        tower_steps: Steps of vision tower and projector on words for patches (or images), 32 images each.
        tower_rate: Their peak rate.
        student_steps: Most steps of projector and language model at 64 tokens, at a constant rate.
        student_loss: Mean loss that ends them: words are bound to what the image shows, whenever that is.
        student_last_steps: Steps after that, at a falling rate.
        student_rate: Their peak rate.
        images: Images a step.
        questions: Questions of an image a step, at most.
        connector_steps: Steps of an edge model's connectors alone.
        connector_rate: Their peak rate.
        joint_steps: Steps after that, with the language model or without it.
        joint_rate: Their peak rate.
        alone_steps: Steps of the compressor on its own reconstruction, where it is trained so first; 32 images each.
        auxiliary_weight: Of the reconstruction loss beside that of the answers.
    """

    num_layers: int = 2
    train_images: int = 4000
    test_images: int = 500
    off_images: int = 200
    words_steps: int = 2000
    words_loss: float = 0.05
    words_rate: float = 2e-3
    tower_steps: int = 800
    tower_rate: float = 2e-3
    student_steps: int = 800
    student_loss: float = 0.06
    student_last_steps: int = 400
    student_rate: float = 2e-3
    images: int = 16
    questions: int = 8
    connector_steps: int = 150
    connector_rate: float = 2e-3
    joint_steps: int = 350
    joint_rate: float = 1e-3
    alone_steps: int = 300
    auxiliary_weight: float = 0.3

    def as_json(self) -> dict[str, Any]:
        """As cells keep it."""
        return asdict(self)
