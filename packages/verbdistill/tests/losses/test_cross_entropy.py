import pytest
import torch

from verbdistill.errors import BatchError
from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.heads import Head


@pytest.mark.parametrize("logits_bytes", [1, 800, 2**20])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients(logits_bytes, bias):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()  # noqa: E731
    features, head = draw(7, 5), Head(draw(11, 5), draw(11) if bias else None)
    labels = torch.tensor([0, 3, 10, 1, 1, 5, 7])
    inputs = [part for part in (features, head.weight, head.bias) if part is not None]
    logits = features @ head.weight.T + (head.bias if bias else 0)
    expected = -sum((logits[t].exp() / logits[t].exp().sum())[labels[t]].log() for t in range(7)) / 7
    wanted = torch.autograd.grad(expected, inputs)
    got = ar_loss(features, head, labels, logits_bytes=logits_bytes)
    torch.testing.assert_close(got, expected)
    for one, other in zip(torch.autograd.grad(got, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_bad_labels():
    head, features = Head(torch.zeros(4, 2)), torch.zeros(3, 2)
    with pytest.raises(BatchError, match=r"ids in 0\.\.3, got -100\.\.2"):
        ar_loss(features, head, torch.tensor([1, 2, -100]))
    with pytest.raises(BatchError, match="each of 3 tokens"):
        ar_loss(features, head, torch.tensor([1, 2]))
    with pytest.raises(BatchError, match="at least one"):
        ar_loss(features[:0], head, torch.tensor([], dtype=torch.int64))
