"""What a trained model is asked."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stagetrain.errors import SampleError
from vlmpress.data import Record, Turn, question_type

_SEED = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question, what was said before it, and the answer expected.

    Attributes:
        images: Paths of the conversation's images.
        turns: The conversation up to the question; the last turn's answer is not shown to the model.
    """

    images: tuple[Path, ...]
    turns: tuple[Turn, ...]

    @property
    def answer(self) -> str:
        """The expected answer."""
        return self.turns[-1].answer

    @property
    def type(self) -> str:
        """VQAv2's type of the expected answer."""
        return question_type(self.answer)


def questions_of(records: Iterable[Record], limit: int | None = None) -> list[Question]:
    """Every question of the records that no training split claims; later turns follow the right earlier answers.

    Args:
        records: Conversations.
        limit: Most questions; a larger number is drawn from, always in the same way, and keeps its order.

    Raises:
        SampleError: There is no question.
    """
    questions = [
        Question(record.images, record.turns[:count])
        for record in records
        if record.split != "train"
        for count in range(1, len(record.turns) + 1)
    ]
    if not questions:
        raise SampleError("questions: expected at least one outside the training split, got none")
    if limit is not None and limit < len(questions):
        chosen = sorted(random.Random(_SEED).sample(range(len(questions)), limit))
        return [questions[index] for index in chosen]
    return questions
