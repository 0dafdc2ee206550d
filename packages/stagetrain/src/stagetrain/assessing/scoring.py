"""Exact-match accuracy by question type."""

from collections import Counter
from dataclasses import dataclass

from vlmpress.data import question_types


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers, 0 to 1, among a number of questions."""

    num_questions: int
    accuracy: float


class Tally:
    """Counts right answers."""

    def __init__(self) -> None:
        self._asked: Counter[str] = Counter()
        self._right: Counter[str] = Counter()

    def add(self, question_type: str, expected: str, answer: str) -> None:
        """Counts one answer, right if equal to the expected one after lower-casing and trimming."""
        self._asked[question_type] += 1
        self._right[question_type] += expected.strip().lower() == answer.strip().lower()

    @property
    def overall(self) -> Score:
        """Over all questions; at least one must have been counted."""
        return Score(self._asked.total(), self._right.total() / self._asked.total())

    @property
    def by_type(self) -> dict[str, Score]:
        """Of each question type that occurred, in VQAv2's order."""
        return {
            name: Score(self._asked[name], self._right[name] / self._asked[name])
            for name in question_types
            if self._asked[name]
        }
