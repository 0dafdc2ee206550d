"""The learning benchmark: its rows, its data, and one small run of everything it does."""

import random
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from auroraedge.arms import Arm, arms_of
from auroraedge.boards import NUM_OBJECTS, PLACES, boards
from auroraedge.cells import Cells
from auroraedge.experiment import Experiment
from auroraedge.fitting import Stage, Subject, rate_factor
from auroraedge.questions import Question, Questions
from auroraedge.recipe import Recipe
from auroraedge.rows import Rows, answers_right, draw, packed_mask
from auroraedge.start import encoded
from auroraedge.tables import all_tables
from auroraedge.tiny import build_model, build_processor

from edgevlm import build_from_llava

SMALL = Recipe(
    num_layers=2, train_images=12, test_images=4, off_images=4, tower_steps=4, student_steps=3, student_last_steps=2,
    images=2, questions=4, connector_steps=2, joint_steps=2, alone_steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Questions:
    return boards(SMALL.train_images, SMALL.test_images)


def test_boards_are_what_their_questions_say(data):
    test = data.test
    colors, shapes, places = (data.words[group] for group in ("color", "shape", "place"))
    assert places == PLACES
    for index, asked in enumerate(test.questions):
        patches = [
            (colors[color], shapes[shape], places[place])
            for color, shape, place in zip(*(test.labels[g][index].tolist() for g in data.words), strict=True)
        ]
        objects = {(color, shape) for color, shape, _ in patches if color != "nothing"}
        assert len(objects) == NUM_OBJECTS
        of_color, of_shape = dict(objects), {shape: color for color, shape in objects}
        for question in asked:
            words = question.text.split()
            if question.kind == "color":
                assert question.answer == of_shape[words[-1]]
            elif question.kind == "shape":
                assert question.answer == of_color[words[-1]]
            elif question.kind == "presence":
                assert words[-2] in of_color
                assert words[-1] in of_shape
                assert question.answer == ("yes" if (words[-2], words[-1]) in objects else "no")
            else:
                seen = {shape for _, shape, place in patches if place == words[-1]} - {"nothing"}
                assert {question.answer} == (seen or {"nothing"})
    assert [len({colors[c] for c in row.tolist()} - {"nothing"}) for row in data.train.labels["color"][:4]] == [
        1,
        2,
        3,
        4,
    ]
    assert data.test.pixels.shape == (4, 64, 64, 3)
    again = boards(SMALL.train_images, SMALL.test_images)
    assert (again.train.pixels == data.train.pixels).all()


def test_rows_are_packed_as_models_take_them():
    segments = torch.tensor([[-1, -1, 0, 0, 1, 1, 1, -2]])
    mask = packed_mask(segments)[0, 0]
    for query, own in enumerate(segments[0].tolist()):
        for key, other in enumerate(segments[0].tolist()):
            allowed = key <= query and other in (-1, own) and -2 not in (own, other)
            assert mask[query, key].item() == (allowed or key == query)
    names = ["<pad>", "</s>", "<user>", "<assistant>", "<image>", "a", "b", "yes", "no"]
    ids = {word: number for number, word in enumerate(names)}
    asked = [[Question("k", "a b", "yes"), Question("k", "b", "no a")], [Question("k", "a", "no")]]
    batch = Rows(ids, 2).batch(asked)
    assert batch["input_ids"][0].tolist() == [2, 4, 4, 5, 6, 3, 7, 1, 6, 3, 8, 5, 1]
    assert batch["labels"][0].tolist() == [-100] * 6 + [7, 1] + [-100] * 2 + [8, 5, 1]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7]
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0).roll(-1, 1), 9).float()
    assert answers_right(logits, batch["labels"]) == [[True, True], [True]]
    logits[0, 10] = torch.nn.functional.one_hot(torch.tensor(0), 9).float()
    assert answers_right(logits, batch["labels"]) == [[True, False], [True]]


def test_yes_and_no_are_drawn_in_pairs():
    asked = [Question("k", str(number), "yes" if number < 2 else "no") for number in range(8)]
    asked += [Question("k", "open", "red")]
    for seed in range(5):
        drawn = [question.answer for question in draw(asked, 5, random.Random(seed))]
        assert drawn.count("yes") == drawn.count("no") == 2
        assert len(drawn) <= 5


def test_rates():
    assert [round(rate_factor(step, Stage(num_steps=4, rate=1, trainable=())), 3) for step in range(4)] == [
        1.0, 1.0, 0.75, 0.25,
    ]  # fmt: skip
    falling = Stage(num_steps=4, rate=1, trainable=(), shape="falling")
    assert [rate_factor(step, falling) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert rate_factor(90, Stage(num_steps=100, rate=1, trainable=(), until=0.1)) == 1.0


def test_right_answers_are_those_that_greedy_decoding_gives(data):
    """An answer counts exactly when `generate` on the question alone gives it."""
    processor = build_processor(data.vocabulary)
    ids = processor.tokenizer.get_vocab()
    llava = build_model(processor, 2, seed=0)
    model, _ = build_from_llava(llava, processor, num_compressed_tokens=4, fusion="none")
    plain, _ = build_from_llava(llava, processor, num_compressed_tokens=4, fusion="none")
    subject = Subject(model.eval(), ids)
    _, test = encoded(llava, data)
    rows = Rows(ids, 4)
    for image in range(2):
        output, labels = subject.forward(test, torch.tensor([image]), [data.test.questions[image]], with_loss=False)
        right = answers_right(output.logits, labels)[0]
        for question, hit in zip(data.test.questions[image], right, strict=True):
            prompt = rows.batch([[Question("k", question.text, "yes")]])["input_ids"][:, :-2]
            answer = [ids[word] for word in question.answer.split()] + [ids["</s>"]]
            made = plain.generate(
                input_ids=prompt, pixel_values=test.pixel_values[image : image + 1], max_new_tokens=len(answer),
                do_sample=False,
            )  # fmt: skip
            assert (made[0, prompt.shape[1] :].tolist() == answer) == hit


def test_every_kind_of_run_and_the_tables(data, tmp_path):
    cells = Cells(tmp_path / "cells.json")
    cells.measure("recipe", SMALL.as_json)
    cells.measure("prior", data.prior, data="boards")
    experiment = Experiment(cells, data, SMALL, 0, tmp_path / "work")
    where = {"data": "boards", "tokens": 4, "llm": "trained"}
    arms = [
        Arm(**where),
        Arm(**where, fusion="combined"),
        Arm(**where, aid="alone"),
        Arm(**where, aid="pixels"),
        Arm(**where | {"llm": "frozen"}, compressor="maxpool", fusion="combined"),
        Arm(**where, fusion="combined", order="parallel", layers=2),
    ]
    assert all(
        any(arm in arms_of(table) for table in ("fusion", "compressors", "reconstruction", "orders")) for arm in arms
    )
    for arm in arms:
        experiment.measure(arm)
    written = (tmp_path / "cells.json").read_text()
    Experiment(Cells(tmp_path / "cells.json"), data, SMALL, 0, tmp_path / "work").measure(arms[0])
    assert (tmp_path / "cells.json").read_text() == written
    shown = all_tables(Cells(tmp_path / "cells.json"))
    for title in ("What there is to learn", "boards: fusion", "Table 6 as ours, 4", "switched off", "reconstruction"):
        assert title in shown
    (row,) = (row for _, row in cells.of("run", fusion="combined", order="serial", compressor="mlp"))
    assert row["off"].keys() == {
        "whole", "cross off", "decoder off", "fusion off", "tokens zero", "tokens of another", "fusion sees another",
    }  # fmt: skip
