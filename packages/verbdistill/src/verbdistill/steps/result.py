"""What a distillation leaves beside the trained student."""

from collections.abc import Sequence
from dataclasses import dataclass

from verbdistill.verbalizers.verbalizers import Verbalizers


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillResult:
    """Histories and verbalizers; the student itself was trained in place.

    Attributes:
        losses: One a step, nats or the unit of the operation: "verbalization_teacher", "verbalization_student" (means
            over targets), "interaction" (all terms), "interaction_last" (the last layer's), "sft".
        target_losses: One a target, of each step: "verbalization_teacher" [steps, t_l], "verbalization_student" and
            "interaction" (of what each target was matched with) [steps, t_s].
        matches: 0-based teacher targets of each student target, of each interaction step; none without a match.
        student_targets: 1-based student layers, rows of the match counts.
        teacher_targets: 1-based teacher layers, columns of the match counts.
        teacher_verbalizers: A training aid, apart from any exported model; None where the teacher came with its own.
        student_verbalizers: The student's; None where it has none.
    """

    losses: dict[str, list[float]]
    target_losses: dict[str, list[list[float]]]
    matches: list[list[list[int]]]
    student_targets: tuple[int, ...]
    teacher_targets: tuple[int, ...]
    teacher_verbalizers: Verbalizers | None
    student_verbalizers: Verbalizers | None

    @property
    def first_counts(self) -> list[list[int]]:
        """How often each pair matched in the first tenth of interaction (at least one step), [t_s, t_l]."""
        return self._counts(self.matches[: self._tenth])

    @property
    def last_counts(self) -> list[list[int]]:
        """The same for the last tenth."""
        return self._counts(self.matches[max(0, len(self.matches) - self._tenth) :])

    @property
    def _tenth(self) -> int:
        return max(1, len(self.matches) // 10)

    def _counts(self, matches: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
        counts = [[0] * len(self.teacher_targets) for _ in self.student_targets]
        for match in matches:
            for row, columns in enumerate(match):
                for column in columns:
                    counts[row][column] += 1
        return counts
