"""Losses over response tokens; logits exist for a chunk of tokens at a time.

N response tokens, h hidden size, V vocabulary size, t_s and t_l targets.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from verbdistill.errors import BatchError, VocabularyMismatchError

Head = Callable[[Tensor], Tensor]
"""Maps states [n, h] of some tokens to logits [n, V]."""


def ar_loss(head: Head, states: Tensor, labels: Tensor, *, chunk_size: int = 1024) -> Tensor:
    """Mean cross-entropy of the labels, nats; states [N, h], labels [N] -> scalar."""

    def summed(chunk: Tensor, chunk_labels: Tensor) -> Tensor:
        return F.cross_entropy(_widened(head(chunk)), chunk_labels, reduction="sum")

    return _over_chunks(summed, (states, labels), chunk_size) / len(labels)


def kl_loss(
    teacher_head: Head,
    teacher_states: Tensor,
    student_head: Head,
    student_states: Tensor,
    *,
    num_words: int,
    chunk_size: int = 1024,
) -> Tensor:
    """Mean KL(teacher || student) over tokens, nats; the teacher's side is without a graph; states [N, h] -> scalar.

    Args:
        teacher_head: Logits of the teacher's states.
        teacher_states: The teacher may have another hidden size.
        student_head: Logits of the student's states.
        student_states: Of the same tokens.
        num_words: Size of the vocabulary both share; logits beyond it are padding and left out.
        chunk_size: Tokens whose logits exist at once.
    """

    def summed(teacher_chunk: Tensor, student_chunk: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logp = _log_probabilities(teacher_head, teacher_chunk, num_words)
        student_logp = _log_probabilities(student_head, student_chunk, num_words)
        return F.kl_div(student_logp, teacher_logp, reduction="sum", log_target=True)

    total = _over_chunks(summed, (teacher_states.detach(), student_states), chunk_size)
    return total / len(student_states)


@torch.no_grad()
def kl_matrix(
    teacher_heads: Sequence[Head],
    teacher_states: Sequence[Tensor],
    student_heads: Sequence[Head],
    student_states: Sequence[Tensor],
    *,
    num_words: int,
    chunk_size: int = 1024,
) -> Tensor:
    """Mean KL(teacher target || student target) of every pair, nats, without a graph -> float32 [t_s, t_l].

    Each target's logits are computed once a chunk; a pair costs one row of a matrix product:
    KL = sum p_t log p_t - sum p_t log p_s.
    """
    num_tokens = len(student_states[0])
    total = torch.zeros(len(student_heads), len(teacher_heads), dtype=torch.float64, device=student_states[0].device)
    # Logits of all targets stand side by side here, so they share one chunk's room.
    step = max(1, chunk_size // (len(teacher_heads) + len(student_heads)))
    for start in range(0, num_tokens, step):
        teacher, student = (
            torch.stack(
                [
                    _log_probabilities(head, part[start : start + step], num_words).flatten()
                    for head, part in zip(heads, states, strict=True)
                ]
            )
            for heads, states in ((teacher_heads, teacher_states), (student_heads, student_states))
        )
        probabilities = teacher.exp()
        total += (probabilities * teacher).sum(1) - student @ probabilities.T
    # Rounding can leave a pair that agrees a hair below zero.
    return (total / num_tokens).clamp_min(0).float()


def shared_words(teacher_size: int, student_size: int, labels: Tensor) -> int:
    """Size of the vocabulary two heads share, where they may differ in padding at the end.

    Raises:
        VocabularyMismatchError: A response token lies beyond it, so the rest is no padding.
    """
    size = min(teacher_size, student_size)
    if labels.numel() == 0:
        raise BatchError("labels: expected at least one response token, got none")
    highest = int(labels.max())
    if highest >= size:
        raise VocabularyMismatchError(
            f"labels: expected token ids below the shared vocabulary of {size} (teacher {teacher_size}, "
            f"student {student_size}), got {highest}"
        )
    return size


def _log_probabilities(head: Head, chunk: Tensor, num_words: int) -> Tensor:
    return torch.log_softmax(_widened(head(chunk)[..., :num_words]), dim=-1)


def _widened(logits: Tensor) -> Tensor:
    """Half-precision logits as float32: sums of exponentials need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _over_chunks(summed: Callable[..., Tensor], parts: tuple[Tensor, Tensor], chunk_size: int) -> Tensor:
    """Sum over chunks of tokens; with more than one, backward computes each chunk's logits again."""
    pieces = list(zip(*(part.split(chunk_size) for part in parts), strict=True))
    if len(pieces) == 1:
        return summed(*parts)
    sums = [checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(sums).sum()
