"""Targets of a pair by name; layers are 1-based as in hidden_states[i]."""

from verbdistill.errors import TargetError
from verbdistill.models.targets import check_pair, check_targets, every_fourth

EVERY_LAYER = "every_layer"
_FIXED = {"llava_onevision": ((4, 12, 20), (10, 30, 50, 70))}
PRESETS = ("qwen2_vl", *_FIXED, EVERY_LAYER)


def preset_targets(
    name: str, *, num_student_layers: int, num_teacher_layers: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(student targets, teacher targets) of a preset.

    Source: VLsI, Section 4.1b (Qwen2-VL) and Appendix D (LLaVA-OneVision).

    Args:
        name: "qwen2_vl": every 4th layer from the 2nd in both. "llava_onevision": 4, 12, 20 of a student of 24 layers
            and 10, 30, 50, 70 of a teacher of 80. "every_layer".
        num_student_layers: Decoder layers of the student.
        num_teacher_layers: Of the teacher.

    Raises:
        TargetError: Unknown name, a model too shallow for the preset, or a teacher shallower than the student.
    """
    if name not in PRESETS:
        raise TargetError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    check_depths(num_student_layers, num_teacher_layers)
    depths = {"student": num_student_layers, "teacher": num_teacher_layers}
    if name in _FIXED:
        chosen = dict(zip(depths, _FIXED[name], strict=True))
    elif name == EVERY_LAYER:
        chosen = {owner: tuple(range(1, depth + 1)) for owner, depth in depths.items()}
    else:
        chosen = {owner: every_fourth(depth) for owner, depth in depths.items()}
    student, teacher = (
        check_targets(chosen[owner], depth, f"preset {name}: {owner}") for owner, depth in depths.items()
    )
    check_pair(student=student, teacher=teacher)
    return student, teacher


def check_depths(num_student_layers: int, num_teacher_layers: int) -> None:
    """Raises TargetError if the teacher has fewer decoder layers than the student."""
    if num_teacher_layers < num_student_layers:
        raise TargetError(
            f"teacher: expected at least as many decoder layers as the student's {num_student_layers}, got "
            f"{num_teacher_layers}"
        )
