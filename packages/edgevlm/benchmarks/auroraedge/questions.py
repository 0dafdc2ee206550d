"""Images with their questions, as both data sets give them."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE, PATCH = 64, 8
GRID = SIDE // PATCH


@dataclass(frozen=True, slots=True)
class Question:
    """Words apart by spaces; `kind` is what results are told by."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """N images.

    Attributes:
        pixels: uint8 [N, SIDE, SIDE, 3].
        questions: Of each image.
        labels: Words, by their number in each group, that say what each patch shows, int64 [N, GRID * GRID]; or what
            each image shows, int64 [N, 1]. -1 for nothing known.
        objects: The same of each of K objects or places of an image, int64 [N, K].
    """

    pixels: np.ndarray
    questions: list[list[Question]]
    labels: dict[str, Tensor]
    objects: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.questions)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Questions:
    """A data set.

    Attributes:
        name: Of the data set.
        train: What is trained on.
        test: What is tested on.
        words: Words of each group of labels, by the labels' numbers.
    """

    name: str
    train: Split
    test: Split
    words: dict[str, tuple[str, ...]]

    @property
    def vocabulary(self) -> list[str]:
        """Every word, sorted."""
        found = {word for names in self.words.values() for name in names for word in name.split()}
        for split in (self.train, self.test):
            for question in (each for row in split.questions for each in row):
                found |= {*question.text.split(), *question.answer.split()}
        return sorted(found)

    def prior(self) -> dict[str, float]:
        """Accuracy by kind of the commonest training answer to the very same words, the image unseen."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        of_kind: dict[str, Counter[str]] = defaultdict(Counter)
        for question in (each for row in self.train.questions for each in row):
            counts[question.text][question.answer] += 1
            of_kind[question.kind][question.answer] += 1
        hits: dict[str, list[bool]] = defaultdict(list)
        for question in (each for row in self.test.questions for each in row):
            guess = (counts.get(question.text) or of_kind[question.kind]).most_common(1)[0][0]
            hits[question.kind].append(guess == question.answer)
            hits["all"].append(guess == question.answer)
        return {kind: sum(each) / len(each) for kind, each in hits.items()}


def as_pixel_values(pixels: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] as float32 [N, 3, H, W] from -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
