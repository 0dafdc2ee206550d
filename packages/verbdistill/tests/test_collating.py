import pytest
import torch

from verbdistill import BatchError
from verbdistill.data.collating import RecordBatches
from vlmpress.data import Record, Turn


def test_answers_and_their_end_are_labels(run_folder, processor):
    record = Record(id="a", images=(run_folder / "0.png",), turns=(Turn("where", "nw"), Turn("where", "nw ne")))
    short = Record(id="b", images=(run_folder / "1.png",), turns=(Turn("where", "ne"),))
    batch = RecordBatches([record, short], processor(), batch_size=2, seed=0)(0)
    rows = sorted(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True), key=lambda row: row[0][-1])
    (short_ids, short_labels), (ids, labels) = rows
    assert ids == [3] * 4 + [4, 5, 6, 2, 4, 5, 6, 7, 2]
    assert labels == [-100] * 6 + [6, 2] + [-100] * 2 + [6, 7, 2]
    assert short_ids == [3] * 4 + [4, 5, 7, 2] + [0] * 5
    assert short_labels == [-100] * 6 + [7, 2] + [-100] * 5
    assert sorted(batch["attention_mask"].sum(1).tolist()) == [8, 13]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["position_ids"].shape == batch["input_ids"].shape


def test_batches_are_keyed_on_the_step_and_cover_every_record(run_folder, processor):
    records = [
        Record(id=word, images=(run_folder / f"{number}.png",), turns=(Turn("where", word),))
        for number, word in enumerate(["nw", "ne", "sw", "se"])
    ]
    one, other = (RecordBatches(records, processor(), batch_size=3, seed=1) for _ in range(2))
    expected = [one(step) for step in range(4)]
    for step in (3, 0, 2, 1):
        batch = other(step)
        assert all(torch.equal(batch[name], expected[step][name]) for name in batch)
    answers = torch.cat([batch["input_ids"][:, 6] for batch in expected])
    assert [sorted(answers[start : start + 4].tolist()) for start in (0, 4, 8)] == [[6, 7, 8, 9]] * 3


def test_several_images_stand_where_their_marks_say(run_folder, processor):
    both = (run_folder / "0.png", run_folder / "1.png")
    first = Record(id="f", images=both, turns=(Turn("where", "nw"),))
    later = Record(id="l", images=both, turns=(Turn("<image> where", "nw"), Turn("<image> where", "ne")))
    batch = RecordBatches([first], processor(), batch_size=1, seed=0)(0)
    assert batch["input_ids"][0].tolist() == [3] * 8 + [4, 5, 6, 2]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    batch = RecordBatches([later], processor(), batch_size=1, seed=0)(0)
    assert batch["input_ids"][0].tolist() == [3] * 4 + [4, 5, 6, 2] + [3] * 4 + [4, 5, 7, 2]
    assert batch["labels"][0].tolist() == [-100] * 6 + [6, 2] + [-100] * 6 + [7, 2]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)


def test_bad_data_is_refused(run_folder, processor):
    text_only = Record(id="t", images=(), turns=(Turn("where", "nw"),))
    with pytest.raises(BatchError, match="records with images"):
        RecordBatches([text_only], processor(), batch_size=1, seed=0)
    (run_folder / "bad.png").write_bytes(b"no image")
    broken = Record(id="x", images=(run_folder / "bad.png",), turns=(Turn("where", "nw"),))
    with pytest.raises(BatchError, match=r"bad\.png: expected a readable image"):
        RecordBatches([broken], processor(), batch_size=1, seed=0)(0)
