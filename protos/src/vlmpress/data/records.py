"""What one sample is."""

import re
from dataclasses import dataclass
from pathlib import Path

question_types = ("yes/no", "number", "other")
"""The answer types of VQAv2, in its order."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about an image.

    Attributes:
        id: As the file says, else its place in the file counted from 0.
        image: Path of the image; None for a conversation without one.
        turns: Questions and answers in order, at least one.
        split: "train" or "test" where the file says so, else None.
    """

    id: str
    image: Path | None
    turns: tuple[Turn, ...]
    split: str | None = None


def question_type(answer: str) -> str:
    """The VQAv2 answer type of an expected answer: "yes/no", "number" or "other"."""
    word = answer.strip().lower().rstrip(".")
    if word in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"[+-]?\d+(\.\d+)?", word) else "other"
