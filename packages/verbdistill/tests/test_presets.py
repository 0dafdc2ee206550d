import pytest

from verbdistill import TargetError
from verbdistill.models.presets import PRESETS, preset_targets


def test_targets_of_the_papers_pairs():
    """NOTES.md: 2, 6, ..., 26 of 28 layers and 2, 6, ..., 78 of 80; LLaVA-OneVision's own."""
    student, teacher = preset_targets("qwen2_vl", num_student_layers=28, num_teacher_layers=80)
    assert (student, teacher) == (tuple(range(2, 27, 4)), tuple(range(2, 79, 4)))
    assert (len(student), len(teacher)) == (7, 20)
    assert preset_targets("llava_onevision", num_student_layers=24, num_teacher_layers=80) == (
        (4, 12, 20),
        (10, 30, 50, 70),
    )
    assert preset_targets("every_layer", num_student_layers=3, num_teacher_layers=4) == ((1, 2, 3), (1, 2, 3, 4))


@pytest.mark.parametrize("name", PRESETS)
def test_a_teacher_shallower_than_the_student_is_refused(name):
    with pytest.raises(TargetError, match="at least as many decoder layers as the student's 80, got 28"):
        preset_targets(name, num_student_layers=80, num_teacher_layers=28)


def test_models_too_shallow_for_a_preset_are_refused():
    with pytest.raises(TargetError, match=r"preset llava_onevision: teacher targets: .* within 1\.\.28, got \[10, 30"):
        preset_targets("llava_onevision", num_student_layers=24, num_teacher_layers=28)
    with pytest.raises(TargetError, match="preset qwen2_vl: student targets"):
        preset_targets("qwen2_vl", num_student_layers=1, num_teacher_layers=8)
    with pytest.raises(TargetError, match="expected one of qwen2_vl, llava_onevision, every_layer, got 'all'"):
        preset_targets("all", num_student_layers=2, num_teacher_layers=3)
