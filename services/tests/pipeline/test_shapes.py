from collections import Counter

import numpy as np
from PIL import Image

from vlmpress_services.pipeline.shapes import COLORS, QUESTIONS_PER_IMAGE, SHAPES, draw_records


def _draw(folder, split="train", count=40, seed=5):
    folder.mkdir()
    return draw_records(folder, split, count, seed, lambda done, total: None)


def test_same_seed_same_bytes_and_questions(tmp_path):
    first, second = _draw(tmp_path / "a"), _draw(tmp_path / "b")
    assert [record.turns for record in first] == [record.turns for record in second]
    for one, two in zip(first, second, strict=True):
        assert one.image.read_bytes() == two.image.read_bytes()


def test_training_and_test_images_differ(tmp_path):
    train, test = _draw(tmp_path / "a"), _draw(tmp_path / "b", split="test")
    assert not {r.image.read_bytes() for r in train} & {r.image.read_bytes() for r in test}


def test_yes_and_no_are_balanced_and_open_answers_true(tmp_path):
    records = _draw(tmp_path / "a", count=200)
    answers = Counter(record.turns[0].answer for record in records)
    assert len(records) == 200 * QUESTIONS_PER_IMAGE
    assert abs(answers["yes"] - answers["no"]) < 80  # a fair draw of 800 differs by more once in 200 seeds
    assert sum(answers[color] for color in COLORS) == sum(answers[shape] for shape in SHAPES) == 200


def test_the_color_is_in_the_image(tmp_path):
    for record in _draw(tmp_path / "a"):
        color = record.turns[0].answer
        if color in COLORS:
            pixels = np.asarray(Image.open(record.image), dtype=int)
            near = np.abs(pixels - np.array(COLORS[color])).max(-1) <= 30
            assert near.mean() > 0.02


def test_negation_flips_the_answer(tmp_path):
    for record in _draw(tmp_path / "a", count=100):
        question, answer = record.turns[0].question, record.turns[0].answer
        if answer not in ("yes", "no"):
            continue
        same_image = [r.turns[0] for r in _records_of(record, tmp_path)]
        truths = {turn.answer for turn in same_image}
        mentioned = any(word in question for word in truths - {"yes", "no"})
        assert (answer == "yes") == (mentioned != ("not" in question.split()))


def _records_of(record, tmp_path, _cache={}):  # noqa: B006  # drawn once for all questions of the test
    if tmp_path not in _cache:
        (tmp_path / "again").mkdir()
        _cache[tmp_path] = draw_records(tmp_path / "again", "train", 100, 5, lambda done, total: None)
    stem = record.image.name
    return [r for r in _cache[tmp_path] if r.image.name == stem]
