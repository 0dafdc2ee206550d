"""The teacher in this process that a configuration's operation asks for."""

from torch import nn

from verbdistill.config import DistillConfig
from verbdistill.errors import VerbalizersError
from verbdistill.steps.verbalization import new_verbalizers, target_layers
from verbdistill.teachers.local import LocalTeacher
from verbdistill.verbalizers.verbalizers import Verbalizers

TAUGHT = ("kl", "l2")
"""Operations that need trained verbalizers of the teacher."""


def local_teacher(model: nn.Module, config: DistillConfig, verbalizers: Verbalizers | None = None) -> LocalTeacher:
    """Answers with what `config.intermediate` compares.

    - "kl", "l2": what trained verbalizers say.
    - "l2_features": bodies as they are drawn, which the student's follow (Appendix D).
    - "l2_hidden": the target layers' own states.
    - "ce", "none": the last layer alone.

    Args:
        model: The teacher; only read.
        config: Of the distillation.
        verbalizers: Trained ones, for the first two and only for them.

    Raises:
        VerbalizersError: They are missing, or given without need.
        TargetError: Targets do not fit the model.
    """
    operation = config.intermediate
    if (operation in TAUGHT) != (verbalizers is not None):
        raise VerbalizersError(
            f"teacher: expected verbalizers for {' and '.join(TAUGHT)} and only then, got "
            f"{'some' if verbalizers is not None else 'none'} for {operation}"
        )
    if verbalizers is not None:
        return LocalTeacher(model, verbalizers.requires_grad_(False))
    if operation not in ("l2_features", "l2_hidden"):
        return LocalTeacher(model, None, layers=())
    layers = target_layers(model, config, "teacher")
    if operation == "l2_hidden":
        return LocalTeacher(model, None, layers=layers)
    bare = new_verbalizers(model, layers, config, "teacher", is_bare=True)
    return LocalTeacher(model, bare.requires_grad_(False))
