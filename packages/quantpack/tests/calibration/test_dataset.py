import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from quantpack import CalibrationError
from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import IGNORED, as_samples, batches, read_questions
from vlmpress.data import DataError


def test_a_question_is_the_chat_with_its_answer(vqa_dir: Path) -> None:
    found = read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", split="test", num_questions=4)
    assert len(found) == 4
    tokenizer = AutoProcessor.from_pretrained(vqa_dir / "model").tokenizer
    for number, question in enumerate(found):
        ids, labels = question.sample["input_ids"][0], question.labels[0]
        text = tokenizer.decode(ids[ids != 3])
        color = ("red", "green", "blue", "white")[(16 + 2 * number) % 4]
        assert text.split() == ["<user>", *["which", "color", "is", "it"], "<assistant>", color, "</s>"]
        assert int((ids == 3).sum()) == 64
        assert tokenizer.decode(labels[labels != IGNORED]).split() == [color, "</s>"]
        assert torch.equal(labels[labels != IGNORED], ids[-2:])
        assert question.sample["pixel_values"].shape == (1, 3, 64, 64)
        assert question.sample["attention_mask"].shape == ids[None].shape
        assert bool(question.sample["attention_mask"].all())


def test_questions_are_spread_over_the_split(vqa_dir: Path) -> None:
    everything = read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", num_questions=100)
    train = read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", split="train", num_questions=100)
    assert (len(everything), len(train)) == (24, 16)
    some = read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", split="train", num_questions=5)
    for number, question in enumerate(some):
        assert torch.equal(question.sample["pixel_values"], train[3 * number].sample["pixel_values"])


def test_every_turn_has_its_chance(vqa_dir: Path, tmp_path: Path) -> None:
    words = ("red", "green", "blue")
    rows = [
        {"conversations": [{"from": who, "value": word} for word in words for who in ("human", "gpt")][: 2 * turns]}
        for turns in (3, 3, 1, 3, 3, 3)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokenizer = AutoProcessor.from_pretrained(vqa_dir / "model").tokenizer

    def asked(number: int) -> list[str]:
        found = read_questions(vqa_dir / "model", tmp_path / "talks.jsonl", num_questions=number)
        return [tokenizer.decode(question.sample["input_ids"][0]).split()[1] for question in found]

    assert asked(6) == ["red", "green", "red", "red", "green", "blue"]
    # Two records apart, but not always the same turn.
    assert asked(3) == ["red", "red", "blue"]
    everything = asked(100)
    assert len(everything) == 16
    assert sorted(everything) == sorted(["red"] * 6 + ["green"] * 5 + ["blue"] * 5)


def test_a_question_asked_alone_has_its_own_images(vqa_dir: Path, tmp_path: Path) -> None:
    names = [json.loads(line)["image"] for line in (vqa_dir / "vqa.jsonl").read_text("utf-8").splitlines()[:2]]
    values = ["red", "red", "<image> green", "green", "blue", "blue", "white <image>", "white"]
    talk = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"image": names, "conversations": talk}), encoding="utf-8")
    found = read_questions(vqa_dir / "model", tmp_path / "talk.jsonl", vqa_dir, num_questions=4)
    images = [question.sample.get("pixel_values") for question in found]
    assert images[0] is None
    assert [int((question.sample["input_ids"] == 3).sum()) for question in found] == [0, 64, 64, 64]
    assert torch.equal(images[1], images[2])
    assert not torch.equal(images[1], images[3])


def test_samples_run_and_answers_are_measured(vqa_dir: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(vqa_dir / "model", dtype=torch.float32)
    questions = read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", vqa_dir, num_questions=6)
    (sample,) = as_samples(batches(questions, 8))
    assert torch.isfinite(model(**sample).loss)
    right = 0
    for question in questions:
        prompt = question.sample["input_ids"][:, :-2]
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=question.sample["pixel_values"],
            max_new_tokens=2,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
        )
        right += int(torch.equal(made[0, -2:], question.sample["input_ids"][0, -2:]))
    assert answer_accuracy(model, questions) == right / 6


def test_bad_datasets_are_named(vqa_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        read_questions(vqa_dir / "model", tmp_path / "nothing.jsonl")
    with pytest.raises(CalibrationError, match="at least one record of split of-nothing"):
        read_questions(vqa_dir / "model", vqa_dir / "vqa.jsonl", split="of-nothing")
    with pytest.raises(CalibrationError, match="expected a processor"):
        read_questions(tmp_path, vqa_dir / "vqa.jsonl")
    (tmp_path / "x.png").write_text("no image", encoding="utf-8")
    row = {"image": "x.png", "question": "which color is it", "answer": "red"}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"x\.png: expected a readable image"):
        read_questions(vqa_dir / "model", tmp_path / "bad.jsonl")
