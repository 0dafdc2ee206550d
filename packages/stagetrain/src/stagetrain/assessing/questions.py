"""What a trained model is asked."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stagetrain.errors import SampleError
from vlmpress.data import IMAGE_MARK, Record, Turn, question_type

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
        _question(record, count)
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


def _question(record: Record, num_turns: int) -> Question:
    """The question of a record's turn `num_turns`, with the images that have been shown by then."""
    turns = record.turns[:num_turns]
    is_marked = any(IMAGE_MARK in turn.question for turn in record.turns)
    num_shown = sum(turn.question.count(IMAGE_MARK) for turn in turns) if is_marked else len(record.images)
    return Question(record.images[:num_shown], turns)
