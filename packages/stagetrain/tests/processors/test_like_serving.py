"""A batch is what the processor makes of the same text and images."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stagetrain import ConversationCollator, Sample
from vlmpress.data import Record, Turn, chat_messages

IGNORED = -100
MADE_HERE = {"labels", "position_ids"}


def single(record: Record) -> Sample:
    return Sample(record.images, (record,))


def served(processor: Any, records: list[Record]) -> dict[str, torch.Tensor]:
    """What the processor makes of whole conversations."""
    texts = [
        processor.apply_chat_template(chat_messages(record.turns, len(record.images)), tokenize=False)
        for record in records
    ]
    images = [[Image.open(path) for path in record.images] for record in records if record.images]
    return dict(processor(text=texts, images=images or None, return_tensors="pt", padding=True, padding_side="right"))


def check_equal(batch: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(batch) - MADE_HERE == set(expected)
    for name, value in expected.items():
        assert batch[name].dtype == value.dtype, name
        assert torch.equal(batch[name], value), name


def test_every_kind_of_row_alone(family: Any, mixture: list[Record]) -> None:
    collator = ConversationCollator(family.processor, pack=False)
    for record in mixture:
        check_equal(collator([single(record)]), served(family.processor, [record]))


def test_a_mixed_batch(family: Any, mixture: list[Record]) -> None:
    collator = ConversationCollator(family.processor)
    for records in (mixture, mixture[::-1], mixture[1:3]):
        check_equal(collator([single(record) for record in records]), served(family.processor, records))


def test_only_answers_have_labels(family: Any, mixture: list[Record]) -> None:
    batch = ConversationCollator(family.processor)([single(record) for record in mixture])
    for ids, labels, record in zip(batch["input_ids"], batch["labels"], mixture, strict=True):
        wanted = " ".join(f"{turn.answer} <eos>" for turn in record.turns)
        assert family.processor.tokenizer.decode(labels[labels != IGNORED]) == wanted
        assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])


def test_positions_are_the_models_own(family: Any, mixture: list[Record]) -> None:
    batch = ConversationCollator(family.processor)([single(record) for record in mixture])
    real = batch["attention_mask"].bool()
    expected = real.cumsum(1) - 1
    if family.name.startswith("qwen"):
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        expected, _ = family.model().model.get_rope_index(**{name: batch[name] for name in names})
    assert batch["position_ids"].shape == expected.shape
    assert torch.equal(batch["position_ids"][..., real], expected[..., real])


def test_the_loss_is_that_of_each_row_alone(family: Any, mixture: list[Record]) -> None:
    model, collator = family.model(), ConversationCollator(family.processor)
    with torch.no_grad():
        batch = collator([single(record) for record in mixture])
        mixed = model(**batch).loss
        losses, counts = [], []
        for record in mixture:
            batch = collator([single(record)])
            counts.append(int((batch["labels"] != IGNORED).sum()))
            losses.append(float(model(**batch).loss))
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(float(mixed), mean, rtol=1e-4, atol=1e-5)


def test_frames_of_a_video_are_images_in_company(family: Any, pictures: list[Path]) -> None:
    record = Record("clip", tuple(pictures), (Turn("what is this", "red"),))
    check_equal(ConversationCollator(family.processor)([single(record)]), served(family.processor, [record]))
