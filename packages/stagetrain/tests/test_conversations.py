from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from stagetrain import CompressionSetting, ConversationCollator, ImageGroups, Sample, attach
from stagetrain.errors import ConfigError, ImageUnreadableError, SampleError, TemplateError
from vlmpress.data import Record, Turn

EOS = 1
IGNORED = -100
Make = Callable[..., Any]


def words(processor: LlavaProcessor, ids: torch.Tensor | list[int]) -> list[str]:
    return list(processor.tokenizer.convert_ids_to_tokens(ids))


def text_record(question: str = "what is this", answer: str = "red") -> Record:
    return Record("t", (), (Turn(question, answer),))


@pytest.fixture
def sample(records: list[Record]) -> Sample:
    return ImageGroups(records)[0]


def test_training_text_is_serving_text(processor: LlavaProcessor, sample: Sample) -> None:
    record = sample.records[0]
    batch = ConversationCollator(processor, pack=False)([Sample(sample.images, (record,))])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": record.turns[0].question}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    served = processor(text=[prompt], images=[Image.open(sample.images[0])], return_tensors="pt")
    length = served["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :length], served["input_ids"])
    assert torch.equal(batch["pixel_values"], served["pixel_values"])
    assert batch["labels"][0, :length].unique().tolist() == [IGNORED]
    assert words(processor, batch["labels"][0, length:]) == ["red", "<eos>"]


def test_packed_rows_have_the_documented_layout(processor: LlavaProcessor, sample: Sample) -> None:
    batch = ConversationCollator(processor)([sample, Sample((), (text_record(),))])
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64,
        "position_ids": torch.int64,
        "labels": torch.int64,
        "attention_mask": torch.bool,
        "pixel_values": torch.float32,
    }
    rows, length = batch["input_ids"].shape
    assert batch["attention_mask"].shape == (rows, 1, length, length) == (2, 1, length, length)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert words(processor, batch["input_ids"][0])[:6] == ["USER", ":", *["<image>"] * 4]
    segments, start = [], 6
    for record in sample.records:
        text = [*record.turns[0].question.split(), "ASSISTANT", ":", record.turns[0].answer, "<eos>"]
        assert words(processor, batch["input_ids"][0, start : start + len(text)]) == text
        assert batch["position_ids"][0, start : start + len(text)].tolist() == list(range(6, 6 + len(text)))
        labelled = batch["labels"][0, start : start + len(text)]
        assert labelled[:-2].unique().tolist() == [IGNORED]
        assert words(processor, labelled[-2:]) == text[-2:]
        segments.append(range(start, start + len(text)))
        start += len(text)
    for query in range(length):
        own = next((segment for segment in segments if query in segment), range(6))
        seen = [key for key in range(query + 1) if key < 6 or key in own] if query < start else [query]
        assert batch["attention_mask"][0, 0, query].nonzero().flatten().tolist() == seen


def summed_loss(model: Any, batch: dict[str, Any]) -> float:
    """Cross entropy of all answer tokens."""
    with torch.no_grad():
        return float(model(**batch).loss) * int((batch["labels"] != IGNORED).sum())


@pytest.mark.parametrize("pooled", [False, True])
def test_packed_questions_equal_each_question_alone(
    make_model: Make, processor: LlavaProcessor, records: list[Record], pooled: bool
) -> None:
    samples = [*list(ImageGroups(records))[:2], Sample((), (text_record(),))]
    model = make_model(3)
    if pooled:
        attach(model).set(CompressionSetting(layer=1, stride=3))
    packed, single = ConversationCollator(processor), ConversationCollator(processor, pack=False)
    for part in (samples, *([one] for one in samples)):
        each = [single([Sample(one.images, (record,))]) for one in part for record in one.records]
        expected = sum(summed_loss(model, batch) for batch in each)
        for collator in (packed, single):
            assert summed_loss(model, collator(part)) == pytest.approx(expected, rel=1e-5)


def test_text_only_row_has_the_same_loss_alone_and_mixed(
    make_model: Make, processor: LlavaProcessor, sample: Sample
) -> None:
    model, collator = make_model(3), ConversationCollator(processor)
    attach(model).set(CompressionSetting(layer=1, stride=2))
    text = Sample((), (text_record(),))
    mixed = collator([sample, text])
    mixed["labels"][0] = IGNORED
    alone = collator([text])
    assert "pixel_values" not in alone
    torch.testing.assert_close(model(**mixed).loss, model(**alone).loss, rtol=1e-5, atol=1e-6)


def test_every_answer_of_a_conversation_is_labelled(processor: LlavaProcessor, sample: Sample) -> None:
    turns = (Turn("what colour is this", "red"), Turn("is it blue", "no it is not"))
    batch = ConversationCollator(processor)([Sample(sample.images, (Record("m", sample.images, turns),))])
    labels = batch["labels"][0]
    assert words(processor, labels[labels != IGNORED]) == ["red", "<eos>", "no", "it", "is", "not", "<eos>"]
    assert torch.equal(labels[labels != IGNORED], batch["input_ids"][0][labels != IGNORED])
    assert batch["position_ids"][0].tolist() == list(range(len(labels)))


def test_a_tokenizers_own_template_serves_too(make_processor: Make, sample: Sample) -> None:
    processor = make_processor(16)
    processor.chat_template = None
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role | replace('user', 'USER') | replace('assistant', 'ASSISTANT') }} : "
        "{{ m.content }} {% if m.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
    )
    own = ConversationCollator(processor)([sample])
    other = ConversationCollator(make_processor(16))([sample])
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_pixels_do_not_depend_on_the_cache(processor: LlavaProcessor, sample: Sample) -> None:
    kept, read = ConversationCollator(processor), ConversationCollator(processor, pixel_cache_bytes=0)
    first = kept([sample])["pixel_values"]
    for collator in (kept, read, read):
        assert torch.equal(collator([sample])["pixel_values"], first)


def template(make_processor: Make, text: str) -> LlavaProcessor:
    return make_processor(16, template=text)


PARTS = "{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The prompt ends with a word that the whole conversation does not have.
        ("{% for m in messages %}" + PARTS + "{% endfor %}{% if add_generation_prompt %}USER {% endif %}", "begin the"),
        ("{% for m in messages %}{{ m.content[-1].text }} {% endfor %}", "expected 1 image marks, got 0"),
        ("{% for m in messages %}" + PARTS + PARTS + "{% endfor %}", "begin the|image marks, got 2"),
        ("{% for m in messages %}{% for c in m.content | reverse %}{% if c.type == 'image' %}<image> {% else %}"
         "{{ c.text }} {% endif %}{% endfor %}{% endfor %}", "the image before"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trained_on_are_refused(
    make_processor: Make, sample: Sample, text: str, message: str
) -> None:
    with pytest.raises(TemplateError, match=message):
        ConversationCollator(template(make_processor, text))([sample])


def test_text_before_the_image_must_be_the_same(make_processor: Make, sample: Sample) -> None:
    text = "{% for m in messages %}{% if 'red' in m.content[-1].text %}USER {% endif %}" + PARTS + "{% endfor %}"
    with pytest.raises(TemplateError, match="the same text before the image"):
        ConversationCollator(template(make_processor, text))([Sample(sample.images, sample.records[1:4])])


def test_answers_are_never_empty_or_cut(make_processor: Make, sample: Sample) -> None:
    processor = make_processor(16)
    with pytest.raises(SampleError, match="expected an answer"):
        ConversationCollator(processor)([Sample((), (text_record(answer=" "),))])
    processor.tokenizer.model_max_length = 14
    collator = ConversationCollator(processor)
    collator([Sample(sample.images, sample.records[1:2])])
    with pytest.raises(SampleError, match="expected at most 14 tokens, got 15"):
        collator([Sample(sample.images, (Record("l", sample.images, (Turn("what is this", "not red it"),)),))])


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\nhalf"])
def test_unreadable_images_are_named(tmp_path: Path, processor: LlavaProcessor, content: bytes | None) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    record = Record("b", (path,), (Turn("what is this", "red"),))
    with pytest.raises(ImageUnreadableError, match=r"broken\.png: expected an image"):
        ConversationCollator(processor)([Sample((path,), (record,))])


def test_a_truncated_image_is_named(tmp_path: Path, processor: LlavaProcessor) -> None:
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ImageUnreadableError, match=r"cut\.png"):
        ConversationCollator(processor)([Sample((path,), (Record("c", (path,), (Turn("what is this", "red"),)),))])


def test_empty_batches_and_settings_are_refused(processor: LlavaProcessor) -> None:
    with pytest.raises(SampleError, match="at least one record"):
        ConversationCollator(processor)([])
    with pytest.raises(ConfigError, match="positive"):
        ConversationCollator(processor, 0)
