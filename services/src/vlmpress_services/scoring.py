"""Exact-match accuracy, over all questions and by question type."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vlmpress.data import question_types
from vlmpress_services.errors import InvalidRequestError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A model's answer to one question of a test set.

    Attributes:
        index: Of the question in the test set.
        question_type: "yes/no", "number" or "other".
        expected: The right answer.
        answer: The model's.
    """

    index: int
    question_type: str
    expected: str
    answer: str

    @property
    def is_correct(self) -> bool:
        """Whether the answers are equal after lower-casing and trimming."""
        return self.answer.strip().lower() == self.expected.strip().lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Share of right answers (0 to 1) among a number of questions."""

    num_questions: int
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The score over all questions, and over those of each type that occurs."""

    overall: Score
    by_type: dict[str, Score]


def score(predictions: Iterable[Prediction]) -> Scores:
    """Scores at least one prediction.

    Raises:
        InvalidRequestError: None is given, an index comes twice, or a question type is unknown.
    """
    hits: dict[str, list[bool]] = defaultdict(list)
    seen: set[int] = set()
    for prediction in predictions:
        if prediction.index in seen:
            raise InvalidRequestError(f"predictions: expected each index once, got {prediction.index} again")
        if prediction.question_type not in question_types:
            raise InvalidRequestError(
                f"prediction {prediction.index}: expected a question type of {', '.join(question_types)}, "
                f"got {prediction.question_type!r}"
            )
        seen.add(prediction.index)
        hits[prediction.question_type].append(prediction.is_correct)
    if not seen:
        raise InvalidRequestError("predictions: expected at least one, got none")
    by_type = {name: _share(hits[name]) for name in question_types if name in hits}
    return Scores(overall=_share([hit for values in hits.values() for hit in values]), by_type=by_type)


def _share(hits: list[bool]) -> Score:
    return Score(num_questions=len(hits), accuracy=sum(hits) / len(hits))
