import pytest
import torch
from PIL import Image

from verbdistill import BatchError
from verbdistill.data.collating import RecordBatches
from verbdistill.data.images import read_image
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
    assert set(batch) == {"input_ids", "labels", "attention_mask", "pixel_values"}


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


def test_processes_share_the_rows_of_a_micro_batch(run_folder, processor):
    records = corners(run_folder)
    whole = RecordBatches(records, processor(), batch_size=4, seed=1)
    shares = [RecordBatches(records, processor(), batch_size=4, seed=1, rank=rank, world_size=3) for rank in range(3)]
    for index in range(3):
        expected = whole(index)
        for rank, share in enumerate(shares):
            batch = share(index)
            for name, value in batch.items():
                assert torch.equal(value, expected[name][rank::3]), name


def test_text_alone_needs_no_image_and_no_image_processor(processor):
    record = Record(id="t", images=(), turns=(Turn("where", "nw"),))
    for reader in (processor(), with_template(processor().tokenizer)):
        batch = RecordBatches([record], reader, batch_size=2, seed=0)(0)
        assert batch["input_ids"].tolist() == [[4, 5, 6, 2]] * 2
        assert set(batch) == {"input_ids", "labels", "attention_mask"}


def test_long_conversations_lose_turns_and_then_their_place(run_folder, processor):
    image = (run_folder / "0.png",)
    turns = Record(id="a", images=image, turns=(Turn("where", "nw"), Turn("where", "nw ne")))
    for most, length in ((13, 13), (12, 8), (8, 8)):
        batch = RecordBatches([turns], processor(), batch_size=1, seed=0, max_length=most)(0)
        assert batch["input_ids"].shape == (1, length)
    with pytest.raises(BatchError, match="record of at most max_length tokens, got 1 longer"):
        RecordBatches([turns], processor(), batch_size=1, seed=0, max_length=7)(0)
    # Images that a lost turn would have shown are lost with it.
    marked = Record(id="m", images=image * 2, turns=(Turn("<image> where", "nw"), Turn("<image> where", "ne")))
    batch = RecordBatches([marked], processor(), batch_size=1, seed=0, max_length=10)(0)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    short = Record(id="s", images=image, turns=(Turn("where", "sw"),))
    long = Record(id="l", images=image * 3, turns=(Turn("where", "nw"),))
    batch = RecordBatches([short, long], processor(), batch_size=2, seed=0, max_length=8)(0)
    assert batch["input_ids"].tolist() == [[3] * 4 + [4, 5, 8, 2]] * 2


def test_templates_that_end_in_white_space_and_of_tokenizers(run_folder, processor):
    """What stands behind the end of an answer is no response; a tokenizer's template gets images as their tokens."""
    reader = processor()
    reader.tokenizer.eos_token = "</s>"
    template = reader.chat_template.replace("' </s>'", "' </s> ?'")
    reader.chat_template = template
    record = Record(id="a", images=(run_folder / "0.png",), turns=(Turn("where", "nw"),))
    batch = RecordBatches([record], reader, batch_size=1, seed=0)(0)
    assert batch["input_ids"].tolist() == [[3] * 4 + [4, 5, 6, 2, 5]]
    assert batch["labels"].tolist() == [[-100] * 6 + [6, 2, -100]]
    reader = processor()
    reader.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}</s>"
    reader.chat_template = None
    with pytest.raises(BatchError, match="record a: expected a chat template that only appends"):
        RecordBatches([record], reader, batch_size=1, seed=0)(0)
    with_template(reader.tokenizer)
    assert RecordBatches([record], reader, batch_size=1, seed=0)(0)["input_ids"].tolist() == [[3] * 4 + [4, 5, 6, 2]]
    reader.tokenizer.chat_template = None
    with pytest.raises(BatchError, match="processor or its tokenizer to have one, got none"):
        RecordBatches([record], reader, batch_size=1, seed=0)(0)


def test_images_are_upright_and_of_eight_bits(tmp_path):
    upright = Image.new("L", (4, 2))
    upright.putpixel((0, 0), 255)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned())
    assert read_image(tmp_path / "turned.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (1, 1), 128 * 256).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("F", (1, 1), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(BatchError, match=r"float\.tiff: expected a readable image, got floating-point pixels"):
        read_image(tmp_path / "float.tiff")


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    return exif


def test_bad_data_is_refused(run_folder, processor):
    with pytest.raises(BatchError, match="at least one record, got none"):
        RecordBatches([], processor(), batch_size=1, seed=0)
    records = corners(run_folder)
    for numbers in ({"batch_size": 0}, {"batch_size": 1, "world_size": 2}, {"batch_size": 2, "rank": 1}):
        with pytest.raises(BatchError, match="expected a rank below"):
            RecordBatches(records, processor(), seed=0, **numbers)
    with pytest.raises(BatchError, match="max_length: expected at least 2, got 1"):
        RecordBatches(records, processor(), batch_size=1, seed=0, max_length=1)
    with pytest.raises(BatchError, match="expected a processor that takes images, got "):
        tokenizer = with_template(processor().tokenizer)
        tokenizer.image_token, tokenizer.image_token_id = "<image>", 3
        RecordBatches(records[:1], tokenizer, batch_size=1, seed=0)(0)
    empty = Record(id="e", images=(), turns=(Turn("where", ""),))
    with pytest.raises(BatchError, match="record e: question 'where': expected an answer, got an empty one"):
        RecordBatches([empty], processor(), batch_size=1, seed=0)(0)
    (run_folder / "bad.png").write_bytes(b"no image")
    broken = Record(id="x", images=(run_folder / "bad.png",), turns=(Turn("where", "nw"),))
    with pytest.raises(BatchError, match=r"bad\.png: expected a readable image"):
        RecordBatches([broken], processor(), batch_size=1, seed=0)(0)
    unmarked = processor()
    unmarked.chat_template = unmarked.chat_template.replace("<image>", "where")
    with pytest.raises(BatchError, match="record 0: expected the chat template to give 1 image marks, got 0"):
        RecordBatches(records[:1], unmarked, batch_size=1, seed=0)(0)


def corners(folder):
    return [
        Record(id=str(number), images=(folder / f"{number}.png",), turns=(Turn("where", word),))
        for number, word in enumerate(["nw", "ne", "sw", "se"])
    ]


def with_template(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %} {{ m.content.replace('\n', ' ') if m.content is string else m.content[0].text }}"
        "{{ ' ?' if m.role == 'user' else ' </s>' }}{% endfor %}"
    )
    return tokenizer
