"""What a truncated teacher hides from a student: the full KL less that of the k likeliest words and one bucket.

t_s, t_l targets, N response tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verbdistill.data.batches import Batch, PairBatch
from verbdistill.errors import BatchError, TeacherCacheError
from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES
from verbdistill.losses.heads import Head, shared_heads
from verbdistill.losses.truncated import truncation_bias
from verbdistill.models.parts import head_of
from verbdistill.models.states import response_states
from verbdistill.teachers.placing import as_pair, device_of, placed, placed_answer, placed_head
from verbdistill.teachers.teacher import Teacher, TruncatedAnswer
from verbdistill.verbalizers.verbalizers import Verbalizers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TruncationBias:
    """Means over response tokens, nats.

    Attributes:
        k: Kept words.
        num_tokens: Response tokens that were compared.
        full: KL of every pair of targets with all words, float64 [t_s, t_l].
        bias: How much lower that with the kept words is, at least 0 but for rounding, float64 [t_s, t_l].
        last_full: The last layer's KL with all words.
        last_bias: How much lower its KL with the kept words is.
    """

    k: int
    num_tokens: int
    full: Tensor
    bias: Tensor
    last_full: float
    last_bias: float

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "k": self.k,
            "num_tokens": self.num_tokens,
            "full_nats": self.full.tolist(),
            "bias_nats": self.bias.tolist(),
            "last_full_nats": self.last_full,
            "last_bias_nats": self.last_bias,
        }


def bias_report(
    teacher: Teacher,
    student: nn.Module,
    verbalizers: Verbalizers,
    batches: Iterable[Batch | PairBatch],
    k: int,
    *,
    words: tuple[Tensor, Tensor] | None = None,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> TruncationBias:
    """How much of the student's KL a teacher truncated to k words does not show, on some micro-batches.

    A lower bound that is tight trains like the full loss; where the bias is a good part of the KL, k is too small. The
    student's verbalizers are used as they are, and nothing is trained.

    Args:
        teacher: Gives whole answers.
        student: The student.
        verbalizers: Its own.
        batches: A few are enough; numbered from 0 for the teacher.
        k: Kept words.
        words: Ids [K] of the teacher and of the student of the words they share (see `shared_words`); None where
            vocabularies differ in padding only.
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: There is no batch, or one that the student cannot use.
        TeacherCacheError: The teacher's answers are truncated already.
        VocabularyMismatchError: A response token is not among the shared words, which should differ in padding only.
    """
    totals = [torch.zeros(())] * 4
    num_tokens = 0
    for index, batch in enumerate(batches):
        theirs, ours, (teacher_head, student_head) = _compared(teacher, student, verbalizers, index, batch, words)
        found: list[Tensor] = []
        for part in (slice(None, -1), slice(-1, None)):
            found += truncation_bias(
                theirs[part], teacher_head, ours[part], student_head, num_kept=k, logits_bytes=logits_bytes
            )
        count = len(ours[0])
        totals = [total + mean.cpu() * count for total, mean in zip(totals, found, strict=True)]
        num_tokens += count
    if not num_tokens:
        raise BatchError("batches: expected at least one, got none")
    full, bias, last_full, last_bias = (total / num_tokens for total in totals)
    return TruncationBias(
        k=k, num_tokens=num_tokens, full=full, bias=bias, last_full=float(last_full), last_bias=float(last_bias)
    )


@torch.no_grad()
def _compared(
    teacher: Teacher,
    student: nn.Module,
    verbalizers: Verbalizers,
    index: int,
    batch: Batch | PairBatch,
    words: tuple[Tensor, Tensor] | None,
) -> tuple[list[Tensor], list[Tensor], tuple[Head, Head]]:
    """Features of both sides at the same tokens, the last layer last, and both heads cut to the shared words."""
    pair, device = as_pair(batch), device_of(student)
    answer = placed_answer(teacher.answer(index, pair.teacher), device, pair.teacher_rows)
    if isinstance(answer, TruncatedAnswer):
        raise TeacherCacheError(f"micro-batch {index}: expected whole answers to see a bias, got truncated ones")
    states = response_states(student, placed(pair.student, device), verbalizers.layers, whole=verbalizers.reads_whole)
    rows = slice(None) if pair.student_rows is None else pair.student_rows.to(device)
    ours = [part[rows] for part in (*verbalizers.features(states), states.last)]
    heads = _heads(placed_head(teacher.head, device), head_of(student), words, states.labels)
    return [*answer.targets, answer.last], ours, heads


def _heads(teacher: Head, student: Head, words: tuple[Tensor, Tensor] | None, labels: Tensor) -> tuple[Head, Head]:
    if words is None:
        return shared_heads(teacher, student, labels)
    return teacher.rows(words[0].to(teacher.weight.device)), student.rows(words[1].to(student.weight.device))
