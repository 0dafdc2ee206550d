"""What can be answered without looking at the image."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vlmpress.data.errors import DataError
from vlmpress.data.records import Record, question_type


@dataclass(frozen=True, slots=True)
class QuestionPrior:
    """The commonest training answer to each question text, and the commonest of all for unseen questions.

    A model that does not beat it has not used the image.
    """

    answers: dict[str, str]
    fallback: str

    @classmethod
    def fit(cls, records: Iterable[Record]) -> "QuestionPrior":
        """Counts the answers of training records; ties go to the answer seen first.

        Raises:
            DataError: There is no record.
        """
        by_question: dict[str, Counter[str]] = defaultdict(Counter)
        overall: Counter[str] = Counter()
        for record in records:
            for turn in record.turns:
                by_question[turn.question.lower()][turn.answer.lower()] += 1
                overall[turn.answer.lower()] += 1
        if not overall:
            raise DataError("expected at least one training record, got none")
        commonest = {question: counts.most_common(1)[0][0] for question, counts in by_question.items()}
        return cls(commonest, overall.most_common(1)[0][0])

    def accuracy(self, records: Iterable[Record]) -> dict[str, float]:
        """Share answered rightly, under "all" and under each question type that occurs, 0 to 1."""
        hits: dict[str, list[bool]] = defaultdict(list)
        for record in records:
            for turn in record.turns:
                hit = self.answers.get(turn.question.lower(), self.fallback) == turn.answer.lower()
                hits["all"].append(hit)
                hits[question_type(turn.answer)].append(hit)
        return {name: sum(values) / len(values) for name, values in hits.items()}
