"""A batch is what the processor makes of the same text and images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from stagetrain import ConversationCollator, Sample
from vlmpress.data import Record, Turn, chat_messages

IGNORED = -100
MADE_HERE = {"labels", "position_ids"}


def make_piecewise(scheme: Any, written: bool) -> Any:
    """A Llava processor over a tokenizer of word pieces; the template writes the first token itself, or leaves it."""
    mark, first = "<image>", "<s>" if written else ""
    inner = Tokenizer(BPE(unk_token="<unk>"))
    inner.pre_tokenizer = Metaspace(prepend_scheme=scheme)
    trainer = BpeTrainer(special_tokens=["<pad>", "</s>", "<unk>", "<s>", mark], vocab_size=70, show_progress=False)
    inner.train_from_iterator(["USER: what is this red or blue ASSISTANT: yes no it is not green"], trainer)
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        padding_side="right",
        extra_special_tokens={"image_token": mark},
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    template = (
        first + "{% for m in messages %}{% if m.role == 'user' %}USER:{% else %}ASSISTANT:{% endif %}"
        "{% for c in m.content %}{% if c.type == 'image' %} <image>\n{% else %} {{ c.text }}{% endif %}{% endfor %}"
        "{% if m.role == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def single(record: Record) -> Sample:
    return Sample(record.images, (record,))


def served(processor: Any, records: list[Record]) -> dict[str, torch.Tensor]:
    """What the processor makes of whole conversations."""
    texts = [
        processor.apply_chat_template(chat_messages(record.turns, len(record.images)), tokenize=False)
        for record in records
    ]
    images = [[Image.open(path) for path in record.images] for record in records if record.images]
    options = {"return_tensors": "pt", "padding": True, "padding_side": "right"}
    bos = processor.tokenizer.bos_token
    if bos is not None and texts[0].startswith(bos):
        options["add_special_tokens"] = False  # as the processor's own chat call has it
    return dict(processor(text=texts, images=images or None, **options))


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


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
@pytest.mark.parametrize("written", [False, True])
def test_pieces_of_words_and_a_first_token(mixture: list[Record], scheme: Any, written: bool) -> None:
    """A tokenizer that marks beginnings of words and puts a token before all, as Llama's does."""
    processor = make_piecewise(scheme, written)
    collator = ConversationCollator(processor)
    check_equal(collator([single(record) for record in mixture]), served(processor, mixture))
    # The first token is there once, whoever writes it.
    ids = collator([single(mixture[0])])["input_ids"][0]
    assert (ids == processor.tokenizer.bos_token_id).nonzero().flatten().tolist() == [0]


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
