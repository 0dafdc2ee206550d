import copy

import pytest
import torch

from verbdistill.config import DistillConfig
from verbdistill.errors import CheckpointError, NonFiniteLossError, TargetError
from verbdistill.steps.distilling import distill


def config(**changes):
    values = {
        "num_verbalization_steps": 20,
        "num_interaction_steps": 30,
        "num_sft_steps": 10,
        "verbalization_lr": 3e-3,
        "interaction_lr": 3e-3,
        "sft_lr": 3e-3,
        "num_warmup_steps": 5,
        "lora_rank": None,
        **changes,
    }
    return DistillConfig(**values)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("lora_rank", [None, 8])
def test_distillation_end_to_end(trained_teacher, llava, batches, tmp_path, lora_rank):
    student = llava(2, seed=2)
    names, before = set(student.state_dict()), weights(trained_teacher)
    seen = []
    result = distill(
        trained_teacher,
        student,
        batches,
        config(lora_rank=lora_rank, num_verbalization_steps=40, num_interaction_steps=60),
        on_progress=lambda *report: seen.append(report),
    )

    last = result.losses["interaction_last"]
    assert sum(last[-5:]) < 0.7 * sum(last[:5])
    for side in ("verbalization_teacher", "verbalization_student"):
        assert result.losses[side][-1] < 0.8 * result.losses[side][0]
    assert len(result.losses["sft"]) == 10
    assert_same(before, weights(trained_teacher))
    assert set(student.state_dict()) == names
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path).eval()
    inputs = batches(0)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, student(**inputs).logits)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    assert [report[:3] for report in seen[:2]] == [
        ("verbalization_teacher", 1, 40),
        ("verbalization_teacher", 2, 40),
    ]
    assert len(seen) == 150
    assert [len(row) for row in result.target_losses["verbalization_teacher"]] == [4] * 40
    assert [len(row) for row in result.target_losses["interaction"]] == [2] * 60
    for match in result.matches:
        drawn = [target for targets in match for target in targets]
        assert len(drawn) == 2
        assert drawn == sorted(set(drawn))
    for counts in (result.first_counts, result.last_counts):
        assert [sum(row) for row in counts] == [6, 6]
        assert all(len(row) == 4 for row in counts)


def test_vision_tower_stays_unless_asked(trained_teacher, llava, batches):
    for asked in (False, True):
        student = llava(2, seed=2)
        before = weights(student.model.vision_tower)
        short = config(num_verbalization_steps=1, num_interaction_steps=2, num_sft_steps=2, train_vision_tower=asked)
        distill(trained_teacher, student, batches, short)
        after = weights(student.model.vision_tower)
        assert any(not torch.equal(before[name], after[name]) for name in before) is asked
        assert all(parameter.requires_grad for parameter in student.parameters())


def test_same_seed_same_weights_and_another_seed_not(trained_teacher, llava, batches):
    students = []
    short = {"num_verbalization_steps": 3, "num_interaction_steps": 4, "num_sft_steps": 2, "lora_rank": 4}
    for place, seed in enumerate((0, 0, 1)):
        students.append(llava(2, seed=2))
        torch.manual_seed(place)  # the caller's generator must not matter
        distill(trained_teacher, students[-1], batches, config(**short, seed=seed))
    assert_same(weights(students[0]), weights(students[1]))
    assert not torch.equal(students[0].lm_head.weight, students[2].lm_head.weight)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("lora_rank", "killed_at"),
    [
        (None, ("verbalization_teacher", 3)),
        (4, ("verbalization_student", 4)),
        (None, ("interaction", 4)),
        (4, ("interaction", 4)),
        (4, ("sft", 1)),
        (None, ("sft", 5)),
    ],
)
def test_a_killed_run_goes_on_and_ends_the_same(trained_teacher, llava, batches, tmp_path, killed_at, lora_rank):
    begun = llava(2, seed=2)
    short = config(num_verbalization_steps=5, num_interaction_steps=6, num_sft_steps=5, lora_rank=lora_rank)
    whole, broken, resumed, again = (copy.deepcopy(begun) for _ in range(4))
    expected = distill(trained_teacher, whole, batches, short)

    def kill(phase, done, _total, _loss):
        if (phase, done) == killed_at:
            raise Killed

    phases = []
    with pytest.raises(Killed):
        distill(trained_teacher, broken, batches, short, checkpoint_dir=tmp_path, on_progress=kill)
    result = distill(
        trained_teacher,
        resumed,
        batches,
        short,
        checkpoint_dir=tmp_path,
        on_progress=lambda phase, *_rest: phases.append(phase),
    )
    assert phases[0] == killed_at[0]
    assert_same(weights(whole), weights(resumed))
    assert_same(weights(expected.student_verbalizers), weights(result.student_verbalizers))
    assert result.losses == expected.losses
    assert result.matches == expected.matches

    # A finished run only reads its checkpoints.
    distill(trained_teacher, again, batches, short, checkpoint_dir=tmp_path, on_progress=pytest.fail)
    assert_same(weights(whole), weights(again))
    assert not list(tmp_path.rglob(".*"))


def test_another_runs_checkpoints_are_refused(trained_teacher, llava, batches, tmp_path):
    short = {"num_verbalization_steps": 1, "num_interaction_steps": 1, "num_sft_steps": 1}
    distill(trained_teacher, llava(2, seed=2), batches, config(**short), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        distill(trained_teacher, llava(2, seed=2), batches, config(**short, seed=9), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="other models"):
        distill(trained_teacher, llava(2, seed=3), batches, config(**short), checkpoint_dir=tmp_path)


@pytest.mark.parametrize(("phase", "step"), [("verbalization_teacher", 2), ("interaction", 1), ("sft", 3)])
def test_nan_loss_names_phase_step_and_micro_batch(trained_teacher, llava, batches, phase, step):
    index = {"verbalization_teacher": 0, "interaction": 5, "sft": 10}[phase] + step

    def poisoned(at):
        batch = batches(at)
        if at == index:
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], float("nan"))
        return batch

    short = config(num_verbalization_steps=5, num_interaction_steps=5, num_sft_steps=5, lora_rank=4)
    student = llava(2, seed=2)
    names = set(student.state_dict())
    said = rf"{phase}: expected a finite loss at step {step} \(micro-batch {index}\)"
    with pytest.raises(NonFiniteLossError, match=said):
        distill(trained_teacher, student, poisoned, short)
    assert set(student.state_dict()) == names


def test_teacher_needs_as_many_targets(llava, batches):
    with pytest.raises(TargetError, match="at least as many decoder layers as the student's 2, got 1"):
        distill(llava(1), llava(2), batches, config())
    with pytest.raises(TargetError, match="at least as many teacher"):
        distill(llava(4), llava(2), batches, config(teacher_targets=(4,)))
    with pytest.raises(TargetError, match=r"student targets: expected ascending layers within 1\.\.2"):
        distill(llava(4), llava(2), batches, config(student_targets=(1, 3)))


def test_models_of_different_width_and_padded_vocabulary(trained_teacher, llava, batches):
    student = llava(2, seed=2, hidden_size=16, vocab_size=20)
    result = distill(trained_teacher, student, batches, config(num_interaction_steps=40, num_sft_steps=1))
    last = result.losses["interaction_last"]
    assert sum(last[-5:]) < sum(last[:5])


def test_phases_may_be_empty(trained_teacher, llava, batches):
    nothing = config(num_verbalization_steps=0, num_interaction_steps=0, num_sft_steps=0)
    student = llava(2, seed=2)
    before = weights(student)
    result = distill(trained_teacher, student, batches, nothing)
    assert_same(before, weights(student))
    assert result.first_counts == [[0] * 4, [0] * 4]
