import pytest
import torch

from verbdistill import DistillConfig, Verbalizers, interact
from verbdistill.errors import ConfigError
from verbdistill.teachers.cached import CachedTeacher
from verbdistill.teachers.local import LocalTeacher


def interaction(teacher, student, batches, **changes):
    config = DistillConfig(
        **{
            "num_verbalization_steps": 0,
            "num_interaction_steps": 5,
            "num_sft_steps": 0,
            "interaction_lr": 3e-3,
            "num_warmup_steps": 1,
            "lora_rank": None,
            **changes,
        }
    )
    verbalizers = Verbalizers(student, (1, 2), generator=torch.Generator().manual_seed(5)).requires_grad_(False)
    history = interact(teacher, student, verbalizers, batches, config)
    return history, {name: value.clone() for name, value in student.state_dict().items()}


@pytest.fixture
def teacher(trained_teacher):
    return LocalTeacher(trained_teacher, Verbalizers(trained_teacher, (1, 2, 4), generator=torch.Generator()))


class Absent:
    """A teacher that is not asked any more."""

    def __init__(self, teacher):
        self.layers, self.head, self.fingerprint = teacher.layers, teacher.head, teacher.fingerprint

    def answer(self, index, batch):
        raise AssertionError("asked")


def test_a_second_run_asks_the_folder_alone_and_ends_with_the_same_bits(teacher, llava, batches, tmp_path):
    first, weights = interaction(CachedTeacher(teacher, tmp_path, 4), llava(2, seed=2), batches)
    second, again = interaction(CachedTeacher(Absent(teacher), tmp_path, 4), llava(2, seed=2), batches)
    assert first == second
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_all_words_kept_train_as_the_teacher_itself_and_few_nearly_so(teacher, llava, batches, tmp_path):
    expected, _ = interaction(teacher, llava(2, seed=2), batches)
    got, _ = interaction(CachedTeacher(teacher, tmp_path, 12), llava(2, seed=2), batches)
    assert got.matches == expected.matches
    torch.testing.assert_close(
        torch.tensor(got.target_losses), torch.tensor(expected.target_losses), rtol=2e-3, atol=2e-4
    )
    few, _ = interaction(CachedTeacher(teacher, tmp_path, 4), llava(2, seed=2), batches)
    # The first step's losses are of the same student: what is merged can only be less.
    assert few.last_losses[0] <= expected.last_losses[0]
    assert few.last_losses[-1] < few.last_losses[0]


def test_accumulated_micro_batches_are_kept_one_by_one(teacher, llava, batches, tmp_path):
    interaction(CachedTeacher(teacher, tmp_path, 4), llava(2, seed=2), batches, accumulation_steps=2)
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 10


def test_truncated_answers_have_no_logits_to_compare(teacher, llava, batches, tmp_path):
    with pytest.raises(ConfigError, match="truncated"):
        interaction(CachedTeacher(teacher, tmp_path, 4), llava(2, seed=2), batches, intermediate="l2")
