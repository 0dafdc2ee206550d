"""Draws images of one coloured shape and asks about them: the demo's own data.

Background brightness, gradient, noise and the shape's place and size vary, so that some images
have little to say and others more. Everything follows from the seed.
"""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlmpress.data import Record, Turn

SIZE_PX = 64
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 150, 44),
    "blue": (31, 80, 210),
    "yellow": (235, 215, 40),
    "purple": (130, 60, 180),
    "black": (15, 15, 15),
    "brown": (125, 75, 35),
    "teal": (20, 165, 165),
}
SHAPES = ("circle", "rectangle", "triangle")
QUESTIONS_PER_IMAGE = 6


def draw_records(
    folder: Path, split: str, num_images: int, seed: int, on_image: Callable[[int, int], None]
) -> list[Record]:
    """Draws `num_images` PNG images into `folder` and asks `QUESTIONS_PER_IMAGE` questions about each.

    Args:
        folder: An existing folder.
        split: "train" or "test"; part of the seed, so that the two never draw the same images.
        num_images: Images to draw.
        seed: Fixes images and questions.
        on_image: Called with (drawn, num_images).
    """
    records = []
    for index in range(num_images):
        rng = random.Random(f"{seed} {split} {index}")
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        path = folder / f"{split}-{index:05d}.png"
        _draw(color, shape, rng).save(path)
        for number, turn in enumerate(_ask(color, shape, rng)):
            records.append(Record(f"{split}-{index:05d}-{number}", (path,), (turn,), split))
        on_image(index + 1, num_images)
    return records


def _draw(color: str, shape: str, rng: random.Random) -> Image.Image:
    pixels = np.random.default_rng(rng.getrandbits(32))
    base = rng.uniform(200, 245)
    slope = rng.choice((0.0, 0.0, rng.uniform(-20, 20)))
    noise = rng.choice((0.0, 0.0, rng.uniform(2, 8)))
    ramp = np.linspace(-slope, slope, SIZE_PX)[:, None, None] + base
    canvas = ramp + pixels.normal(0, 1, (SIZE_PX, SIZE_PX, 3)) * noise
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8)).convert("RGB")
    jitter = [rng.randint(-12, 12) for _ in range(3)]
    fill = tuple(min(255, max(0, value + shift)) for value, shift in zip(COLORS[color], jitter, strict=True))
    width = rng.randint(16, 44)
    height = width if shape == "circle" else min(44, max(12, round(width * rng.uniform(0.6, 1.5))))
    left, top = rng.randint(1, SIZE_PX - width - 2), rng.randint(1, SIZE_PX - height - 2)
    box = (left, top, left + width, top + height)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "rectangle":
        pen.rectangle(box, fill=fill)
    else:
        pen.polygon(
            [(left, top + height), (left + width, top + height), (left + width * rng.uniform(0.3, 0.7), top)], fill=fill
        )
    return image.filter(ImageFilter.GaussianBlur(rng.choice((0.0, 0.5))))


def _ask(color: str, shape: str, rng: random.Random) -> list[Turn]:
    """Two open questions and four yes/no questions, two of them true; some are negated."""
    open_questions = [
        Turn(rng.choice(("what color is the shape?", "which color does the image show?")), color),
        Turn(rng.choice(("what shape is in the image?", "which shape is there?")), shape),
    ]
    other_color = rng.choice([name for name in COLORS if name != color])
    other_shape = rng.choice([name for name in SHAPES if name != shape])
    things = [
        (color, f"{color} shape"),
        (shape, shape),
        (other_color, f"{other_color} shape"),
        (other_shape, other_shape),
    ]
    turns = []
    for position, (_, thing) in enumerate(things):
        present, negated = position < 2, rng.random() < 0.3
        template = rng.choice(("is there {no}a {thing}?", "does the image {no}contain a {thing}?"))
        turns.append(
            Turn(template.format(no="not " if negated else "", thing=thing), "no" if present == negated else "yes")
        )
    return [*open_questions, *turns]
