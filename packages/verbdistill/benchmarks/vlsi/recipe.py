"""Numbers of the runs."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How students train.

    Attributes:
        num_images: Training images that students see; the teacher has seen all.
        num_layers: Decoder layers of the students; every layer of both is a target.
        num_steps: Optimizer steps of a student.
        interaction: Share of them that a distilled student spends in interaction; the rest is SFT.
        verbalization_steps: Steps of the verbalizers of each model, which train no student.
        images: Images of a step.
        questions: Questions of an image a step, at most.
        learning_rate: Peak of interaction, and of SFT from scratch.
        sft_learning_rate: Peak of SFT behind interaction.
        verbalization_learning_rate: Peak of verbalization.
        min_lr_ratio: What the cosine of every phase ends at; 1: no decay. Plateaus end sooner without.
    """

    num_images: int = 4000
    num_layers: int = 3
    num_steps: int = 500
    interaction: float = 0.7
    verbalization_steps: int = 100
    images: int = 16
    questions: int = 6
    learning_rate: float = 3e-3
    sft_learning_rate: float = 1e-3
    verbalization_learning_rate: float = 1e-3
    min_lr_ratio: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """As cells keep it."""
        return asdict(self)
