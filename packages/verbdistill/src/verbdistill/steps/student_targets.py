"""What of the student's target layers is compared with the teacher's.

N response tokens, h the student's hidden size, h_t the teacher's.
"""

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import VerbalizersError
from verbdistill.loop.seeding import seed_of
from verbdistill.losses.heads import Head
from verbdistill.models.parts import head_of, hidden_size
from verbdistill.models.states import ResponseStates
from verbdistill.steps.verbalization import new_verbalizers, target_layers
from verbdistill.verbalizers.verbalizers import Verbalizers

SPEAKING = ("kl", "l2", "ce")
"""Operations that need trained verbalizers of the student."""


class StudentTargets(nn.Module):
    """Verbalizers, or what stands in their place without a head; its parameters train where they require gradients.

    Attributes:
        layers: 1-based target layers; none where nothing is compared.
        reads_whole: Whether it reads states of all positions.
    """

    def __init__(
        self, layers: tuple[int, ...], verbalizers: Verbalizers | None, projections: nn.ModuleList | None
    ) -> None:
        super().__init__()
        self.layers = layers
        self.verbalizers = verbalizers
        self.projections = projections
        self.reads_whole = verbalizers is not None and verbalizers.reads_whole

    def features(self, states: ResponseStates) -> tuple[Tensor, ...]:
        """[N, h] of every target, or [N, h_t] where they are compared without a head."""
        if self.verbalizers is not None:
            return self.verbalizers.features(states)
        if self.projections is None:
            return states.layers
        return tuple(linear(part) for linear, part in zip(self.projections, states.layers, strict=True))

    @property
    def head(self) -> Head:
        """The frozen head that reads the features of verbalizers."""
        assert self.verbalizers is not None
        return self.verbalizers.head


def student_targets(
    student: nn.Module, verbalizers: Verbalizers | None, config: DistillConfig, teacher_size: int
) -> StudentTargets:
    """What the configuration's operation compares.

    - "kl", "l2", "ce": the given verbalizers, frozen.
    - "l2_features": new bodies that end in the teacher's width, without norm and head; they train (Appendix D).
    - "l2_hidden": the layers' own states; a linear map that trains brings them to another width of the teacher's.
    - "none": nothing.

    Raises:
        VerbalizersError: Verbalizers are needed and not given, or given and not needed.
        TargetError: Targets do not fit the student.
    """
    operation = config.intermediate
    if (operation in SPEAKING) != (verbalizers is not None):
        raise VerbalizersError(
            f"interaction: expected the student's verbalizers for {', '.join(SPEAKING)} and only then, got "
            f"{'some' if verbalizers is not None else 'none'} for {operation}"
        )
    if verbalizers is not None:
        return StudentTargets(verbalizers.layers, verbalizers.requires_grad_(False), None)
    if operation == "none":
        return StudentTargets((), None, None)
    layers = target_layers(student, config, "student")
    if operation == "l2_features":
        bare = new_verbalizers(student, layers, config, "student", out_size=teacher_size, is_bare=True)
        return StudentTargets(layers, bare, None)
    size = hidden_size(student)
    return StudentTargets(
        layers, None, None if size == teacher_size else _maps(student, layers, size, teacher_size, config.seed)
    )


def _maps(student: nn.Module, layers: tuple[int, ...], size: int, teacher_size: int, seed: int) -> nn.ModuleList:
    weight = head_of(student).weight
    generator = torch.Generator().manual_seed(seed_of(seed, "maps"))
    maps = nn.ModuleList()
    for _ in layers:
        linear = nn.Linear(size, teacher_size, bias=False)
        with torch.no_grad():
            linear.weight.copy_(torch.empty(teacher_size, size).normal_(std=size**-0.5, generator=generator))
        maps.append(linear.to(weight))
    return maps
