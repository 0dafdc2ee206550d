"""Features and heads of a teacher and a student; slow references in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from verbdistill.losses.heads import Head

torch.set_num_threads(1)


@dataclass
class Case:
    teacher_head: Head
    student_head: Head
    teacher: list[Tensor]
    student: list[Tensor]

    def logits(self) -> tuple[list[Tensor], list[Tensor]]:
        """In float64, as one big product each."""
        sides = ((self.teacher, self.teacher_head), (self.student, self.student_head))
        return tuple(
            [part.double() @ head.weight.double().T + (0 if head.bias is None else head.bias.double()) for part in side]
            for side, head in sides
        )

    def every_pair(self, row_loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Sums of a loss of two rows of logits, teacher's and student's, row by row -> [t_s, t_l]."""
        theirs, ours = self.logits()
        return torch.stack(
            [torch.stack([sum(row_loss(*rows) for rows in zip(t, s, strict=True)) for t in theirs]) for s in ours]
        )


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def make_case(
    num_tokens: int,
    words: int | tuple[int, int],
    widths: tuple[int, int],
    targets: tuple[int, int],
    *,
    bias: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    head_dtype: torch.dtype | None = None,
) -> Case:
    """Teacher's first in every pair of numbers; the student's features require gradients."""
    words = (words, words) if isinstance(words, int) else words
    heads, sides = [], []
    for side, (size, width, count) in enumerate(zip(words, widths, targets, strict=True)):
        weight = draw(size, width, seed=seed + side, scale=width**-0.5, dtype=head_dtype or dtype)
        heads.append(Head(weight, draw(size, seed=seed + 2 + side, dtype=head_dtype or dtype) if bias else None))
        sides.append(
            [draw(num_tokens, width, seed=seed + 100 * side + k + 9, scale=2, dtype=dtype) for k in range(count)]
        )
    return Case(heads[0], heads[1], sides[0], [part.requires_grad_() for part in sides[1]])


@pytest.fixture
def case() -> Callable[..., Case]:
    return make_case


@pytest.fixture
def drawn() -> Callable[..., Tensor]:
    return draw


SHAPES = [
    # tokens, words, widths, targets, bias
    (7, 11, (5, 4), (3, 2), False),
    (1, 13, (3, 6), (4, 3), True),
    (10, 2, (4, 4), (1, 1), False),
]


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape[:2])))
def shaped(request: pytest.FixtureRequest) -> Case:
    *shape, bias = request.param
    return make_case(*shape, bias=bias)


@pytest.fixture(params=[1, 1500, 2**20])
def logits_bytes(request: pytest.FixtureRequest) -> int:
    """One token at once, some, and all."""
    return request.param


def agree(pairs_of: Callable[[], object], expected: Tensor, student: list[Tensor], weights: Tensor) -> None:
    """Compares sums, a weighted match and its gradients with a reference [t_s, t_l] that has a graph."""
    wanted = torch.autograd.grad((weights * expected).sum(), student)
    pairs = pairs_of()
    assert pairs.num_tokens == len(student[0])
    assert (pairs.sums.dtype, pairs.sums.shape) == (torch.float64, weights.shape)
    torch.testing.assert_close(pairs.sums, expected.detach(), rtol=1e-9, atol=1e-11)
    loss = pairs.weighted(weights)
    torch.testing.assert_close(loss, (weights * expected).sum().detach(), rtol=1e-9, atol=1e-11)
    for got, want in zip(torch.autograd.grad(loss * 3, student), wanted, strict=True):
        torch.testing.assert_close(got, want * 3, rtol=1e-8, atol=1e-11)


@pytest.fixture
def check_pairs() -> Callable[..., None]:
    return agree


def agree_last(loss_of: Callable[[], Tensor], expected: Tensor, inputs: list[Tensor]) -> None:
    """Compares a value and its gradients with a reference that has a graph."""
    wanted = torch.autograd.grad(expected, inputs)
    got = loss_of()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    for one, other in zip(torch.autograd.grad(got, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.fixture
def check_last() -> Callable[..., None]:
    return agree_last
