import pytest
import torch

from verbdistill.errors import BatchError, VocabularyMismatchError
from verbdistill.losses import heads
from verbdistill.losses.heads import Head, shared_heads


def test_shared_heads():
    big, small = Head(torch.zeros(8, 3), torch.zeros(8)), Head(torch.zeros(6, 2))
    teacher, student = shared_heads(big, small, torch.tensor([5, 0]))
    assert (teacher.num_words, len(teacher.bias), student.num_words) == (6, 6, 6)
    with pytest.raises(VocabularyMismatchError, match="below the shared vocabulary of 6"):
        shared_heads(big, small, torch.tensor([6]))
    with pytest.raises(BatchError, match="at least one"):
        shared_heads(big, small, torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_half_precision_is_widened_block_by_block(monkeypatch, drawn, dtype, bias):
    monkeypatch.setattr(heads, "_BLOCK_ELEMENTS", 20)
    head = Head(drawn(11, 4, dtype=dtype), drawn(11, seed=1, dtype=dtype) if bias else None)
    features, gradient = drawn(2, 3, 4, seed=2, dtype=dtype), drawn(2, 3, 11, seed=3, dtype=torch.float32)
    logits = head.logits(features)
    expected = features.double() @ head.weight.double().T + (head.bias.double() if bias else 0)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        head.pull_back(gradient).double(), gradient.double() @ head.weight.double(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(head.logits(features.double()), expected)
