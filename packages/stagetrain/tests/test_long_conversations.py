"""What becomes of conversations that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stagetrain import Batches, ConversationCollator, Sample, SingleRecords
from stagetrain.errors import ConfigError, SampleError
from vlmpress.data import Record, Turn

IGNORED = -100
# "USER : <image> x 4 what is this ASSISTANT : red <eos>": 6 + 3 + 2 + 2 tokens; each further turn takes 9.
ASK = Turn("what is this", "red")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def sample(path: Path, *records: tuple[Turn, ...]) -> Sample:
    return Sample((path,), tuple(Record(f"r{n}", (path,), turns) for n, turns in enumerate(records)))


def answers(processor: Any, batch: dict[str, Any]) -> list[str]:
    rows = zip(batch["input_ids"], batch["labels"], strict=True)
    return [processor.tokenizer.decode(ids[labels != IGNORED]) for ids, labels in rows]


def test_an_error_names_the_record(processor: Any, path: Path) -> None:
    message = r"record r1: question 'what is this': expected at most 20 tokens, got 22"
    for pack in (True, False):
        collator = ConversationCollator(processor, pack=pack, max_length=20)
        collator([sample(path, (ASK,))])
        with pytest.raises(SampleError, match=message):
            collator([sample(path, (ASK,), (ASK, ASK))])


def test_a_skip_is_counted_and_leaves_the_other_records(processor: Any, path: Path) -> None:
    collator = ConversationCollator(processor, pack=False, max_length=20, too_long="skip")
    batch = collator([sample(path, (ASK,), (ASK, ASK), (Turn("is it red", "yes"),))])
    assert answers(processor, batch) == ["red <eos>", "yes <eos>"]
    assert batch["skipped"] == ["record r1: question 'what is this': expected at most 20 tokens, got 22"]
    assert "skipped" not in collator([sample(path, (ASK,))])
    packed = ConversationCollator(processor, max_length=20, too_long="skip")([sample(path, (ASK, ASK), (ASK,))])
    assert len(packed["pixel_values"]) == 1
    with pytest.raises(SampleError, match="record r0"):
        collator([sample(path, (ASK, ASK))])


@pytest.mark.parametrize(("limit", "kept"), [(13, 1), (21, 1), (22, 2), (30, 2), (31, 3), (99, 3)])
def test_last_turns_are_dropped_whole(processor: Any, path: Path, limit: int, kept: int) -> None:
    collator = ConversationCollator(processor, max_length=limit, too_long="drop_turns")
    turns = (ASK, Turn("is it green", "no"), Turn("is it red", "yes"))
    batch = collator([sample(path, turns)])
    assert answers(processor, batch) == [" ".join(f"{turn.answer} <eos>" for turn in turns[:kept])]
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4


def test_a_first_turn_that_does_not_fit_is_skipped(processor: Any, path: Path) -> None:
    collator = ConversationCollator(processor, max_length=12, too_long="drop_turns")
    text = Record("t", (), (ASK,))
    batch = collator([sample(path, (ASK, ASK)), Sample((), (text,))])
    assert answers(processor, batch) == ["red <eos>"]
    assert "pixel_values" not in batch
    assert batch["skipped"] == ["record r0: question 'what is this': expected at most 12 tokens, got 13"]


def test_a_dropped_turn_takes_its_images_along(processor: Any, path: Path) -> None:
    turns = (Turn("is <image> red", "yes"), Turn("is it green", "no"), Turn("or <image>", "no"))
    record = Record("m", (path, path), turns)
    collator = ConversationCollator(processor, max_length=24, too_long="drop_turns")
    batch = collator([Sample((path, path), (record,))])
    assert answers(processor, batch) == ["yes <eos> no <eos>"]
    assert len(batch["pixel_values"]) == 1
    assert (batch["input_ids"] == processor.image_token_id).sum() == 4


@pytest.mark.parametrize("too_long", ["skip", "drop_turns"])
def test_nothing_is_ever_cut(processor: Any, path: Path, too_long: Any) -> None:
    """Whatever the limit: an image has all its placeholders and every answer its end, or the record is not there."""
    long = sample(path, tuple(Turn("is it red", "yes") for _ in range(4)))
    short = Sample((), (Record("t", (), (Turn("or", "no"),)),))
    for limit in range(7, 45):
        batch = ConversationCollator(processor, max_length=limit, too_long=too_long)([long, short])
        assert batch["input_ids"].shape[1] <= limit
        fits = limit >= (40 if too_long == "skip" else 13)
        assert len(batch["input_ids"]) == 1 + fits
        assert len(batch.get("skipped", [])) == 1 - fits
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            ends = int((ids == processor.tokenizer.eos_token_id).sum())
            assert int((ids == processor.image_token_id).sum()) in (0, 4)
            assert int((labels == processor.tokenizer.eos_token_id).sum()) == ends >= 1


def test_batches_count_them_too(processor: Any, path: Path) -> None:
    records = [Record(f"r{n}", (path,), (ASK,) * (1 + n % 2)) for n in range(6)]
    for too_long in ("error", "skip"):
        collator = ConversationCollator(processor, max_length=20, too_long=too_long)  # type: ignore[arg-type]
        batch = Batches(SingleRecords(records), collator, 6, 1, 0)[0]
        assert sorted(line[:9] for line in batch["skipped"]) == ["record r1", "record r3", "record r5"]
        assert answers(processor, batch) == ["red <eos>"] * 3


def test_images_stand_before_or_behind_the_first_question(processor: Any, path: Path) -> None:
    collator = ConversationCollator(processor, pack=False, seed=7, image_position="random")
    first, words = sample(path, (ASK, Turn("is it red", "yes"))), []
    for epoch in range(40):
        drawn = collator.draw(first, epoch, 3)
        assert drawn == collator.draw(first, epoch, 3)
        batch = collator([drawn])
        words.append(processor.tokenizer.decode(batch["input_ids"][0]))
        assert answers(processor, batch) == ["red <eos> yes <eos>"]
    image = "<image>" * 4
    forms = {" ".join(text.replace("<image> ", "<image>").replace("<image>", "").split()) for text in words}
    assert len(forms) == 1
    before = sum(text.replace(" ", "").startswith(f"USER:{image}") for text in words)
    behind = sum(f"this{image}ASSISTANT" in text.replace(" ", "") for text in words)
    assert before + behind == 40
    assert 10 < before < 30
    other = ConversationCollator(processor, pack=False, seed=8, image_position="random")
    places = [[one.draw(first, epoch, 3).images_last for epoch in range(40)] for one in (collator, other)]
    assert places[0] != places[1]


def test_a_mark_says_where_its_image_goes(processor: Any, path: Path) -> None:
    record = Record("m", (path,), (Turn("is <image> red", "yes"),))
    texts = set()
    for last in (False, True):
        batch = ConversationCollator(processor)([Sample((path,), (record,), last)])
        texts.add(processor.tokenizer.decode(batch["input_ids"][0]).replace(" ", ""))
    assert texts == {"USER:is" + "<image>" * 4 + "redASSISTANT:yes<eos>"}


def test_settings_that_contradict_are_refused(processor: Any) -> None:
    for settings, message in (
        ({"image_position": "random"}, "image_position random: expected pack=False"),
        ({"image_position": "behind", "pack": False}, "expected one of before, random, got 'behind'"),
        ({"too_long": "cut"}, "expected one of error, skip, drop_turns, got 'cut'"),
        ({"max_length": 0}, "expected positive max_questions_per_image and max_length, got 6 and 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ConversationCollator(processor, **settings)  # type: ignore[arg-type]


def test_nothing_is_left_to_the_padding(processor: Any, path: Path) -> None:
    batch = ConversationCollator(processor, pack=False)([sample(path, (ASK,), (ASK, ASK))])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert batch["labels"][padding].unique().tolist() == [IGNORED]
    assert torch.equal(batch["input_ids"][padding].unique(), torch.tensor([processor.tokenizer.pad_token_id]))
