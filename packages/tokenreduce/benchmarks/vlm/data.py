"""Images that differ in how much they show, and questions about them; made here, from fixed seeds.

One to four shapes (many are small, one is often large) lie on a plain, a shaded or a noisy ground; the ground is
drawn independently of the shapes, so that texture alone says nothing about what the questions need.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

SIDE, PATCH = 64, 8
GRID = SIDE // PATCH
COLOURS = {"red": (220, 50, 50), "green": (50, 190, 70), "blue": (60, 80, 230), "yellow": (230, 210, 50)}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = ("plain", "shaded", "noisy")
# Sides of the shapes' boxes in pixels, by how many of them there are.
_SIZES = {1: (16, 40), 2: (14, 28), 3: (12, 22), 4: (10, 18)}
_SPLITS = {"train": (1, 6000), "val": (2, 400), "test": (3, 900)}
_LEAST_COVER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """kind is "presence" or "colour"; words without the answer."""

    kind: str
    words: tuple[str, ...]
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """N images with their questions.

    Attributes:
        pixels: uint8 [N, SIDE, SIDE, 3].
        patches: What covers most of each patch: 0 for ground, else 1 + colour * len(SHAPES) + shape; int64
            [N, GRID, GRID].
        num_shapes: int64 [N].
        grounds: Index into GROUNDS, int64 [N].
        questions: One list an image.
    """

    pixels: np.ndarray
    patches: np.ndarray
    num_shapes: np.ndarray
    grounds: np.ndarray
    questions: list[list[Question]]


def make_split(name: str) -> Split:
    seed, num_images = _SPLITS[name]
    rng = np.random.default_rng([4, seed])
    made = [_make_image(rng, 1 + index % 4) for index in range(num_images)]
    pixels, patches, grounds, questions = (list(column) for column in zip(*made, strict=True))
    return Split(
        pixels=np.stack(pixels),
        patches=np.stack(patches),
        num_shapes=np.array([1 + index % 4 for index in range(num_images)]),
        grounds=np.array(grounds),
        questions=questions,
    )


def question_prior(train: Split, test: Split) -> dict[str, float]:
    """Accuracy by kind, and of all, of the training split's commonest answer to the very same words."""
    counts: dict[tuple[str, ...], dict[str, int]] = {}
    for question in (each for row in train.questions for each in row):
        answers = counts.setdefault(question.words, {})
        answers[question.answer] = answers.get(question.answer, 0) + 1
    right: dict[str, list[bool]] = {"presence": [], "colour": []}
    for question in (each for row in test.questions for each in row):
        answers = counts.get(question.words, {"": 0})
        right[question.kind].append(max(answers, key=lambda answer: answers[answer]) == question.answer)
    return {kind: float(np.mean(values)) for kind, values in right.items()} | {
        "all": float(np.mean([value for values in right.values() for value in values]))
    }


def _make_image(rng: Generator, num_shapes: int) -> tuple[np.ndarray, np.ndarray, int, list[Question]]:
    ground = int(rng.integers(len(GROUNDS)))
    image = Image.fromarray(_ground(rng, GROUNDS[ground]))
    draw = ImageDraw.Draw(image)
    things = _pairs(rng, num_shapes)
    owners = np.zeros((SIDE, SIDE), dtype=np.int64)
    for (colour, shape), (left, top, size) in zip(things, _boxes(rng, num_shapes), strict=True):
        jitter = rng.integers(-20, 21, 3)
        fill = tuple(int(value) for value in np.clip(np.array(list(COLOURS.values())[colour]) + jitter, 0, 255))
        mask = Image.new("1", (SIDE, SIDE))
        for target, ink in ((draw, fill), (ImageDraw.Draw(mask), 1)):
            _draw_shape(target, SHAPES[shape], left, top, size, ink)
        owners[np.array(mask)] = 1 + colour * len(SHAPES) + shape
    return np.array(image), _patch_labels(owners), ground, _ask(rng, things)


def _ground(rng: Generator, kind: str) -> np.ndarray:
    base = rng.integers(60, 200, 3) // 2 + rng.integers(30, 100)
    image = np.broadcast_to(base.astype(float), (SIDE, SIDE, 3)).copy()
    if kind == "shaded":
        image += np.linspace(-45, 45, SIDE)[:, None, None] * rng.choice([-1, 1])
        image += np.linspace(-25, 25, SIDE)[None, :, None] * rng.choice([-1, 1])
    elif kind == "noisy":
        # Spots of two pixels, so that noise is not averaged away inside a patch.
        image += rng.normal(0, 30, (SIDE // 2, SIDE // 2, 1)).repeat(2, axis=0).repeat(2, axis=1)
    return np.clip(image, 0, 255).astype(np.uint8)


def _pairs(rng: Generator, num_shapes: int) -> list[tuple[int, int]]:
    """Different (colour, shape) pairs."""
    chosen = rng.choice(len(COLOURS) * len(SHAPES), num_shapes, replace=False)
    return [divmod(int(pair), len(SHAPES)) for pair in chosen]


def _boxes(rng: Generator, num_shapes: int) -> list[tuple[int, int, int]]:
    """Boxes (left, top, size) at least two pixels apart; starts again where the last ones find no room."""
    low, high = _SIZES[num_shapes]
    while True:
        boxes: list[tuple[int, int, int]] = []
        for _ in range(60):
            size = int(rng.integers(low, high + 1))
            left, top = (int(value) for value in rng.integers(0, SIDE - size, 2))
            if all(
                left + size + 2 <= x or x + other + 2 <= left or top + size + 2 <= y or y + other + 2 <= top
                for x, y, other in boxes
            ):
                boxes.append((left, top, size))
            if len(boxes) == num_shapes:
                return boxes


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, left: int, top: int, size: int, ink: object) -> None:
    right, bottom = left + size - 1, top + size - 1
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=ink)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=ink)
    elif shape == "triangle":
        draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=ink)
    else:
        arm = max(size // 3, 3)
        middle = (size - arm) // 2
        draw.rectangle((left + middle, top, left + middle + arm - 1, bottom), fill=ink)
        draw.rectangle((left, top + middle, right, top + middle + arm - 1), fill=ink)


def _patch_labels(owners: np.ndarray) -> np.ndarray:
    tiles = owners.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    labels = np.zeros((GRID, GRID), dtype=np.int64)
    most = np.full((GRID, GRID), _LEAST_COVER - 1)
    for owner in np.unique(owners[owners > 0]):
        cover = (tiles == owner).sum(axis=-1)
        labels[cover > most] = owner
        most = np.maximum(most, cover)
    return labels


def _ask(rng: Generator, things: list[tuple[int, int]]) -> list[Question]:
    """As many yes as no; a no asks, where it can, for a colour and a shape that are there but not together."""
    colours, shapes = list(COLOURS), SHAPES
    present = [things[index] for index in rng.permutation(len(things))[:2]]
    both = [(c, s) for c in {c for c, _ in things} for s in {s for _, s in things} if (c, s) not in things]
    half = [
        (c, s)
        for c in range(len(colours))
        for s in range(len(shapes))
        if (c, s) not in things and (c, s) not in both and any(c == a or s == b for a, b in things)
    ]
    absent = [both[index] for index in rng.permutation(len(both))] + [
        half[index] for index in rng.permutation(len(half))
    ]
    asked = [(pair, "yes") for pair in present] + [(pair, "no") for pair in absent[: len(present)]]
    questions = [
        Question(kind="presence", words=("any", colours[c], shapes[s], "?"), answer=answer) for (c, s), answer in asked
    ]
    kinds = [s for _, s in things]
    clear = [(c, s) for c, s in things if kinds.count(s) == 1]
    for index in rng.permutation(len(clear))[:2]:
        c, s = clear[index]
        questions.append(Question(kind="colour", words=("colour", "of", shapes[s], "?"), answer=colours[c]))
    return questions
