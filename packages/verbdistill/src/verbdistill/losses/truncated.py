"""KL divergence from what is kept of a teacher: its k likeliest words, and one bucket for all others.

Merging words can only lower a KL (data-processing inequality): it is a lower bound of the full one, and the bias
says by how much.

t_s, t_l targets, N response tokens, n of a chunk, h hidden size, V words, k kept words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from verbdistill.losses.chunks import DEFAULT_LOGITS_BYTES, token_chunks
from verbdistill.losses.fused import Rule, summed_loss
from verbdistill.losses.heads import Head, working_dtype
from verbdistill.losses.linear_pairs import check_tokens
from verbdistill.losses.outcomes import Kept, Said
from verbdistill.losses.pairwise_kl import pairwise_kl
from verbdistill.losses.recomputed_pairs import Partners, RecomputedPairs

# Logits, log-probabilities, the latter's sum in float64 (two); what the teacher asks for, of all partners and of one.
_ARRAYS = 6


def likeliest_words(
    features: Tensor, head: Head, num_kept: int, *, logits_bytes: int = DEFAULT_LOGITS_BYTES
) -> tuple[Tensor, Tensor]:
    """The likeliest words of every token, the likeliest first: (ids int64, log-probabilities float32), [N, k] each.

    Args:
        features: What the head reads, [N, h].
        head: Cut to the words that a student shares.
        num_kept: k; V where the head has fewer words.
        logits_bytes: Room for everything with a vocabulary axis.
    """
    num_kept = min(num_kept, head.num_words)
    words = torch.empty(len(features), num_kept, dtype=torch.int64, device=features.device)
    log_p = torch.empty(len(features), num_kept, dtype=torch.float32, device=features.device)
    itemsize = working_dtype(features).itemsize
    with torch.no_grad():
        for chunk in token_chunks(
            len(features), num_words=head.num_words, num_arrays=3, itemsize=itemsize, logits_bytes=logits_bytes
        ):
            log_p[chunk], words[chunk] = F.log_softmax(head.logits(features[chunk]), dim=-1).topk(num_kept)
    return words, log_p


def truncated_pairwise_kl(
    words: Sequence[Tensor],
    log_probabilities: Sequence[Tensor],
    student: Sequence[Tensor],
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> RecomputedPairs:
    """KL(teacher target || student target) of every pair over k + 1 outcomes, nats.

    Args:
        words: The likeliest words of every teacher target, ids [N, k] each.
        log_probabilities: Natural logarithms of their probabilities, [N, k] each.
        student: What its head reads of every target, [N, h]; these get gradients.
        student_head: Cut to the shared words; frozen here.
        logits_bytes: Room for everything with a vocabulary axis.

    Raises:
        BatchError: The tokens are not the same ones, or none.
        VocabularyMismatchError: A kept word is not among the student's.
    """
    check_tokens(words, student)
    teacher = [Kept.checked(*pair, student_head) for pair in zip(words, log_probabilities, strict=True)]
    sums = torch.zeros(len(student), len(teacher), dtype=torch.float64, device=student[0].device)
    with torch.no_grad():
        for row, features in zip(sums, student, strict=True):
            for chunk in token_chunks(
                len(features),
                num_words=student_head.num_words,
                num_arrays=_ARRAYS,
                itemsize=working_dtype(features).itemsize,
                logits_bytes=logits_bytes,
            ):
                said = Said.of(student_head.logits(features[chunk]))
                row += torch.stack([kept[chunk].divergence(said).sum() for kept in teacher])

    def rule_of(partners: Partners) -> Rule:
        return _rule([(teacher[number], weight) for number, weight in partners])

    return RecomputedPairs(
        sums.clamp_min_(0), student, student_head, rule_of, num_arrays=_ARRAYS, logits_bytes=logits_bytes
    )


def truncated_last_kl(
    words: Tensor,
    log_probabilities: Tensor,
    student: Tensor,
    student_head: Head,
    *,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> Tensor:
    """Mean over tokens of the last layer's KL over k + 1 outcomes, nats, scalar.

    As `truncated_pairwise_kl` of one target; the head's weight and bias get gradients if they require them.
    """
    check_tokens([words], [student])
    rule = _rule([(Kept.checked(words, log_probabilities, student_head), 1.0)])
    return summed_loss(student, student_head, rule, num_arrays=_ARRAYS, logits_bytes=logits_bytes) / len(student)


def truncation_bias(
    teacher: Sequence[Tensor],
    teacher_head: Head,
    student: Sequence[Tensor],
    student_head: Head,
    *,
    num_kept: int,
    logits_bytes: int = DEFAULT_LOGITS_BYTES,
) -> tuple[Tensor, Tensor]:
    """Mean full KL of every pair, nats, and how much lower the truncated one is; float64 [t_s, t_l] each."""
    with torch.no_grad():
        full = pairwise_kl(teacher, teacher_head, student, student_head, logits_bytes=logits_bytes).sums
        kept = [likeliest_words(part, teacher_head, num_kept, logits_bytes=logits_bytes) for part in teacher]
        words, log_p = zip(*kept, strict=True)
        lower = truncated_pairwise_kl(words, log_p, student, student_head, logits_bytes=logits_bytes).sums
    return full / len(student[0]), (full - lower) / len(student[0])


def _rule(partners: Sequence[tuple[Kept, float]]) -> Rule:
    def rule(chunk: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        said = Said.of(logits)
        losses = torch.zeros_like(said.total)
        gradient = said.p * sum(weight for _, weight in partners)
        for kept, weight in partners:
            part = kept[chunk]
            losses += weight * part.divergence(said)
            gradient.sub_(part.asked(said), alpha=weight)
        return losses, gradient

    return rule
