"""What happened in a distillation, step by step.

t_s, t_l: number of student and teacher targets.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from verbdistill.errors import ReportError

VERBALIZATION_TEACHER, VERBALIZATION_STUDENT, INTERACTION = (
    "verbalization_teacher",
    "verbalization_student",
    "interaction",
)

Match = Sequence[Sequence[int]]
"""Of each student target the 0-based teacher targets it learned from in a step, at least one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillReport:
    """Histories of a run; a phase that was left out has none.

    Attributes:
        student_layers: 1-based target layers of the student.
        teacher_layers: Those of the teacher.
        losses: One number a step, in nats or the unit of the operation: "verbalization_teacher",
            "verbalization_student" (means over targets), "interaction" (all terms), "interaction_last", "sft".
        target_losses: A row a step, one number a target: "verbalization_teacher" [steps, t_l],
            "verbalization_student" [steps, t_s], "interaction" [steps, t_s] (of the match that was drawn).
        matches: Of each interaction step; none where no intermediate layer was matched.
        settings: What the run was told, as a configuration file would say it.
    """

    student_layers: tuple[int, ...]
    teacher_layers: tuple[int, ...]
    losses: Mapping[str, Sequence[float]]
    target_losses: Mapping[str, Sequence[Sequence[float]]]
    matches: Sequence[Match]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = {
            VERBALIZATION_TEACHER: len(self.teacher_layers),
            VERBALIZATION_STUDENT: len(self.student_layers),
            INTERACTION: len(self.student_layers),
        }
        for name, rows in self.target_losses.items():
            width = widths.get(name)
            if width is None:
                raise ReportError(f"target_losses: expected {', '.join(widths)}, got {name!r}")
            # Rows of a phase that looked at no target are empty.
            if any(rows) and any(len(row) != width for row in rows):
                raise ReportError(f"target_losses: {name}: expected rows of {width} targets, got others")
            _check_numbers(f"target_losses: {name}", chain.from_iterable(rows))
        for name, values in self.losses.items():
            _check_numbers(f"losses: {name}", values)
        for step, match in enumerate(self.matches):
            if len(match) != len(self.student_layers) or not all(
                drawn and set(drawn) <= set(range(len(self.teacher_layers))) for drawn in match
            ):
                raise ReportError(
                    f"matches: step {step}: expected teacher targets below {len(self.teacher_layers)} for each of "
                    f"{len(self.student_layers)} student targets, got {list(match)}"
                )

    def losses_of(self, name: str) -> Sequence[Sequence[float]]:
        """The rows of a history in `target_losses`; none where the phase or its targets were left out."""
        rows = self.target_losses.get(name, ())
        return rows if any(rows) else ()

    def layers_of(self, name: str) -> tuple[int, ...]:
        """Target layers of a history in `target_losses`."""
        return self.teacher_layers if name == VERBALIZATION_TEACHER else self.student_layers

    def match_shares(self, *, at_end: bool) -> list[list[float]]:
        """Share of each teacher target in what a student target learned from, [t_s, t_l]; rows sum to 1 (Figure 5).

        Over the first or the last tenth of the interaction steps, at least one; empty where nothing was matched.
        Several teacher targets of one step count in equal parts.
        """
        if not self.matches:
            return []
        tenth = math.ceil(len(self.matches) / 10)
        shares = [[0.0] * len(self.teacher_layers) for _ in self.student_layers]
        for match in self.matches[-tenth:] if at_end else self.matches[:tenth]:
            for row, drawn in zip(shares, match, strict=True):
                for index in drawn:
                    row[index] += 1 / (len(drawn) * tenth)
        return shares


def _check_numbers(where: str, values: Iterable[float]) -> None:
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ReportError(f"{where}: expected finite numbers, got {value!r}")
