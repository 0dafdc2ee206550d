"""Boards: coloured shapes in some of nine cells, no two alike in colour or in shape; made here, from fixed seeds.

Every question needs one object, found by its colour, its shape or its place, so that what keeps objects apart matters.
A "no" names a colour and a shape that are both there, apart from each other. Test boards have four objects; training
boards have one to four, since words are bound to objects sooner where there is one.
"""

import numpy as np
import torch
from auroraedge.questions import GRID, PATCH, SIDE, Question, Questions, Split
from numpy.random import Generator
from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 80, 230),
    "yellow": (235, 215, 40),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
NOTHING = "nothing"
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACES = tuple(f"{row}-{column}" for row in _ROWS for column in _COLUMNS)
NUM_OBJECTS, CELLS = 4, 3
_SIZES = (14, 19)
_SEEDS = {"train": 1, "test": 2}
_LEAST_COVER = 8


def boards(num_train: int, num_test: int) -> Questions:
    """The data set."""
    words = {"color": (*COLORS, NOTHING), "shape": (*SHAPES, NOTHING), "place": PLACES}
    train, test = _split("train", num_train), _split("test", num_test)
    return Questions(name="boards", train=train, test=test, words=words)


def _split(name: str, number: int) -> Split:
    rng = np.random.default_rng([7, _SEEDS[name]])
    counts = [NUM_OBJECTS if name == "test" else 1 + index % NUM_OBJECTS for index in range(number)]
    made = [_board(rng, count) for count in counts]
    pixels, owners, objects = (list(column) for column in zip(*made, strict=True))
    covers = np.stack([_covers(each) for each in owners])
    labels, cells = {}, {"place": torch.arange(CELLS * CELLS).expand(number, -1)}
    for group, (names, place) in {"color": (COLORS, 0), "shape": (SHAPES, 1)}.items():
        table = np.full((number, NUM_OBJECTS + 1), len(names))
        for index, row in enumerate(objects):
            table[index, : len(row)] = [each[place] for each in row]
        of_cells = np.full((number, CELLS * CELLS), len(names))
        for index, row in enumerate(objects):
            of_cells[index, [each[2] for each in row]] = [each[place] for each in row]
        cells[group] = torch.from_numpy(of_cells)
        labels[group] = torch.from_numpy(np.take_along_axis(table, covers.reshape(number, -1), axis=1))
    cell = np.arange(GRID) * PATCH + PATCH // 2
    cell = cell * CELLS // SIDE
    labels["place"] = torch.from_numpy(np.tile((cell[:, None] * CELLS + cell).reshape(1, -1), (number, 1)))
    questions = [_ask(rng, row) for row in objects]
    return Split(pixels=np.stack(pixels), questions=questions, labels=labels, objects=cells)


def _board(rng: Generator, count: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Pixels, whose object each pixel is of (NUM_OBJECTS: of none), and the objects' colour, shape and cell."""
    ground = tuple(int(value) for value in rng.integers(20, 110, 3))
    image, owners = Image.new("RGB", (SIDE, SIDE), ground), Image.new("L", (SIDE, SIDE), NUM_OBJECTS)
    chosen = (rng.permutation(number)[:count] for number in (len(COLORS), len(SHAPES), CELLS * CELLS))
    objects = [(int(color), int(shape), int(cell)) for color, shape, cell in zip(*chosen, strict=True)]
    for number, (color, shape, cell) in enumerate(objects):
        size = int(rng.integers(_SIZES[0], _SIZES[1] + 1))
        row, column = divmod(cell, CELLS)
        left, top = (int(side * SIDE // CELLS + rng.integers(0, SIDE // CELLS - size + 1)) for side in (column, row))
        jitter = rng.integers(-15, 16, 3)
        ink = tuple(int(value) for value in np.clip(np.array(list(COLORS.values())[color]) + jitter, 0, 255))
        _draw(ImageDraw.Draw(image), SHAPES[shape], left, top, size, ink, ground)
        _draw(ImageDraw.Draw(owners), SHAPES[shape], left, top, size, number, NUM_OBJECTS)
    return np.array(image), np.array(owners), objects


def _draw(draw: ImageDraw.ImageDraw, shape: str, left: int, top: int, size: int, ink: object, ground: object) -> None:
    right, bottom = left + size - 1, top + size - 1
    arm = size // 3
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=ink)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=ink)
    elif shape == "triangle":
        draw.polygon([((left + right) // 2, top), (left, bottom), (right, bottom)], fill=ink)
    elif shape == "cross":
        draw.rectangle((left + arm, top, right - arm, bottom), fill=ink)
        draw.rectangle((left, top + arm, right, bottom - arm), fill=ink)
    else:
        draw.rectangle((left, top, right, bottom), fill=ink)
        draw.rectangle((left + 4, top + 4, right - 4, bottom - 4), fill=ground)


def _covers(owners: np.ndarray) -> np.ndarray:
    """The object that covers most of each patch, NUM_OBJECTS for ground, [GRID, GRID]."""
    tiles = owners.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID, GRID, -1)
    counts = np.stack([(tiles == number).sum(-1) for number in range(NUM_OBJECTS)])
    return np.where(counts.max(0) >= _LEAST_COVER, counts.argmax(0), NUM_OBJECTS)


def _ask(rng: Generator, objects: list[tuple[int, int, int]]) -> list[Question]:
    """Up to two questions of each kind; one for presence is answered yes, one no; one place is empty."""
    colors, questions, count = list(COLORS), [], len(objects)
    for number in rng.permutation(count)[:2]:
        color, shape, _ = objects[number]
        questions.append(Question("color", f"what color is the {SHAPES[shape]}", colors[color]))
    for number in rng.permutation(count)[:2]:
        color, shape, _ = objects[number]
        questions.append(Question("shape", f"what shape is {colors[color]}", SHAPES[shape]))
    yes, no = objects[int(rng.integers(count))], rng.permutation(count)
    colour, other = objects[no[0]][0], objects[no[-1]][1]
    if count == 1:
        other = (other + int(rng.integers(1, len(SHAPES)))) % len(SHAPES)
    for color, shape, answer in ((yes[0], yes[1], "yes"), (colour, other, "no")):
        questions.append(Question("presence", f"is there a {colors[color]} {SHAPES[shape]}", answer))
    full, empty = (
        objects[int(rng.integers(count))],
        [cell for cell in range(CELLS * CELLS) if cell not in {each[2] for each in objects}],
    )
    questions.append(Question("place", f"what is at the {PLACES[full[2]]}", SHAPES[full[1]]))
    questions.append(Question("place", f"what is at the {PLACES[empty[int(rng.integers(len(empty)))]]}", NOTHING))
    return questions
