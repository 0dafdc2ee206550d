"""What interaction compares at the targets and at the last layer (VLsI, Table 4d).

t_s, t_l: number of student and teacher targets; N response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verbdistill.config import DistillConfig
from verbdistill.errors import ConfigError
from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.feature_l2 import pairwise_feature_l2
from verbdistill.losses.heads import Head, shared_heads
from verbdistill.losses.logit_l2 import last_logit_l2, pairwise_logit_l2
from verbdistill.losses.pairs import PairLosses
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.losses.sorted_distance import last_sorted_distance, pairwise_sorted_distance
from verbdistill.losses.truncated import truncated_last_kl, truncated_pairwise_kl
from verbdistill.steps.student_targets import StudentTargets
from verbdistill.teachers.placing import Answer
from verbdistill.teachers.teacher import TeacherAnswer, TruncatedAnswer

MATCHED = ("kl", "l2", "l2_features", "l2_hidden")
"""Operations that compare with teacher targets, and so need a match."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What the student says of a micro-batch's response tokens, with its graph.

    Attributes:
        targets: Of every target what its head reads, or what is compared without one, [N, h] each.
        last: What the language head reads, [N, h].
        labels: Token ids to predict, [N].
    """

    targets: Sequence[Tensor]
    last: Tensor
    labels: Tensor


class Operations:
    """The losses that a configuration names, over the words that both models share."""

    def __init__(self, config: DistillConfig, teacher_head: Head | None, words: tuple[Tensor, Tensor] | None) -> None:
        """Takes the head of the teacher's answers, and of vocabularies to align the ids [K] of each one's shared words.

        Raises:
            ConfigError: Words to share are not told, or told without need.
        """
        if (config.alignment == "shared_words") != (words is not None):
            raise ConfigError(
                f"alignment: expected words of both vocabularies with shared_words and only then, got "
                f"{'some' if words is not None else 'none'} with {config.alignment}"
            )
        self._config = config
        self._teacher_head = teacher_head
        self._cut: Head | None = None
        self._words = words

    def pairs(self, answer: Answer, said: Said, targets: StudentTargets) -> PairLosses:
        """Losses of every pair of targets."""
        operation, room = self._config.intermediate, self._config.logits_bytes
        if operation in ("l2_features", "l2_hidden"):
            return pairwise_feature_l2(_whole(answer, operation).targets, said.targets)
        head = targets.head
        if self._config.alignment == "sorted":
            whole = _whole(answer, "sorted")
            return pairwise_sorted_distance(whole.targets, self._head, said.targets, head, logits_bytes=room)
        if isinstance(answer, TruncatedAnswer):
            _check_kl(operation)
            ours = self._own(head, said.labels)
            words, log_p = answer.words[:-1], answer.log_probabilities[:-1]
            return truncated_pairwise_kl(words, log_p, said.targets, ours, logits_bytes=room)
        theirs, ours = self._theirs(head), self._own(head, said.labels)
        compare = pairwise_kl if operation == "kl" else pairwise_logit_l2
        return compare(answer.targets, theirs, said.targets, ours, logits_bytes=room)

    def labelled(self, said: Said, head: Head) -> Tensor:
        """Loss of every student target on the labels, summed over tokens, [t_s]; `head` is frozen."""
        room = self._config.logits_bytes
        losses = [ar_loss(part, head, said.labels, logits_bytes=room) for part in said.targets]
        return torch.stack(losses) * len(said.labels)

    def last(self, answer: Answer | None, said: Said, head: Head) -> Tensor:
        """The last layer's loss, summed over tokens; `head` is the student's own, which may train."""
        return self._last(answer, said, head) * len(said.labels)

    def _last(self, answer: Answer | None, said: Said, head: Head) -> Tensor:
        operation, room = self._config.last, self._config.logits_bytes
        if operation == "ce":
            return ar_loss(said.last, head, said.labels, logits_bytes=room)
        assert answer is not None
        if self._config.alignment == "sorted":
            whole = _whole(answer, "sorted")
            return last_sorted_distance(whole.last, self._head, said.last, head, logits_bytes=room)
        if isinstance(answer, TruncatedAnswer):
            _check_kl(operation)
            ours = self._own(head, said.labels)
            return truncated_last_kl(answer.words[-1], answer.log_probabilities[-1], said.last, ours, logits_bytes=room)
        theirs, ours = self._theirs(head), self._own(head, said.labels)
        compare = last_kl if operation == "kl" else last_logit_l2
        return compare(answer.last, theirs, said.last, ours, logits_bytes=room)

    @property
    def _head(self) -> Head:
        assert self._teacher_head is not None
        return self._teacher_head

    def _own(self, student: Head, labels: Tensor) -> Head:
        """The student's head cut to the words that both share."""
        if self._words is not None:
            return student.rows(self._words[1].to(student.weight.device))
        return shared_heads(self._head, student, labels)[1]

    def _theirs(self, student: Head) -> Head:
        """The teacher's; cut once where words are picked, because that copies them."""
        if self._words is None:
            return self._head.first(student.num_words)
        if self._cut is None:
            self._cut = self._head.rows(self._words[0].to(self._head.weight.device))
        return self._cut


def with_targets(answer: Answer, wanted: Sequence[int]) -> Answer:
    """The answer of some teacher targets only, 0-based."""
    if isinstance(answer, TruncatedAnswer):
        kept = [*wanted, len(answer.words) - 1]
        return TruncatedAnswer(
            words=tuple(answer.words[each] for each in kept),
            log_probabilities=tuple(answer.log_probabilities[each] for each in kept),
            labels=answer.labels,
        )
    return TeacherAnswer(targets=tuple(answer.targets[each] for each in wanted), last=answer.last, labels=answer.labels)


def _whole(answer: Answer, operation: str) -> TeacherAnswer:
    if isinstance(answer, TruncatedAnswer):
        raise ConfigError(f"{operation}: expected a teacher's whole answers, got truncated ones")
    return answer


def _check_kl(operation: str) -> None:
    if operation != "kl":
        raise ConfigError(f"{operation}: expected kl with a teacher's truncated answers, got {operation}")
