"""Numbers of the runs."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a starting point is made and how a run trains.

    Attributes:
        num_layers: Decoder layers.
        tower_steps: Steps of the vision tower on attributes, 32 images each.
        start_steps: Most steps of projector and language model before any run, uncompressed and at a constant rate; 0:
            runs start with a fresh language model.
        start_loss: They end as soon as the mean loss of 50 of them is below this, nats: past the plateau on which
            words are not yet bound to what the image shows, whose length is a matter of luck.
        num_steps: Steps of a run, on all training images.
        images: Images a step.
        clips: Clips a step.
        questions: Questions of an image a step, at most.
        learning_rate: Peak; a short warmup, then constant, then falling linearly.
        decay_fraction: Share of the run that it falls in.
    """

    num_layers: int = 8
    tower_steps: int = 2000
    start_steps: int = 2000
    start_loss: float = 0.1
    num_steps: int = 300
    images: int = 16
    clips: int = 8
    questions: int = 6
    learning_rate: float = 3e-3
    decay_fraction: float = 0.4

    def as_json(self) -> dict[str, Any]:
        """As cells keep it."""
        return asdict(self)
