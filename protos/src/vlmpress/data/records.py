"""What one sample is."""

import re
from dataclasses import dataclass
from pathlib import Path

question_types = ("yes/no", "number", "other")
"""The answer types of VQAv2, in its order."""

IMAGE_MARK = "<image>"
"""Stands in a question's text where an image belongs."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about images.

    Attributes:
        id: As the file says, else its place in the file counted from 0.
        images: Paths of the images in their order; a video is its frames.
        turns: Questions and answers in order, at least one. Questions either hold one IMAGE_MARK for each image,
            which says where it goes, or none: then all images go to the first question, before or behind it.
        split: "train" or "test" where the file says so, else None.
    """

    id: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    split: str | None = None

    @property
    def image(self) -> Path | None:
        """The first image; None for a conversation without one."""
        return self.images[0] if self.images else None

    @property
    def text_length(self) -> int:
        """Characters of all questions and answers."""
        return sum(len(turn.question) + len(turn.answer) for turn in self.turns)


def question_type(answer: str) -> str:
    """The VQAv2 answer type of an expected answer: "yes/no", "number" or "other"."""
    word = answer.strip().lower().rstrip(".")
    if word in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"[+-]?\d+(\.\d+)?", word) else "other"
