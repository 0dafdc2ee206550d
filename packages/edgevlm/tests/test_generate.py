"""`generate` with images, as Hugging Face users call it."""

import threading

import pytest
import torch
from transformers import CLIPVisionModel, LlamaForCausalLM, TextIteratorStreamer, TextStreamer

from edgevlm import ModelInputError, build

VARIANTS = [{"fusion": "none"}, {"fusion": "combined"},
            {"fusion": "combined", "fusion_order": "parallel", "num_fusion_layers": 2,
             "position_mode": "uncompressed"}]  # fmt: skip
PAD, BOS, IMAGE = 0, 2, 4
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "suppress_tokens": [IMAGE]}
SAMPLED = GREEDY | {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] | upper }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT{% endif %}"
)


def variants(function):
    return pytest.mark.parametrize("variant", VARIANTS, ids=["none", "serial", "parallel"])(function)


@pytest.fixture
def edge(tiny):
    """A model with its processor; gates open."""
    text, vision = LlamaForCausalLM(tiny.text_config()), CLIPVisionModel(tiny.vision_config())
    model, processor = build(
        vision, text, tiny.clip_image_processor(), tiny.tokenizer(), num_compressed_tokens=4, chat_template=CHAT
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
    return model, processor


def batch_of(tiny, model):
    """Two images, one and none; left padded."""
    images = tiny.inputs(model, [(7,), (7,), (7,)])
    images.pop("input_ids")
    rows = [[BOS, 5, *[IMAGE] * 4, 7, *[IMAGE] * 4, 8, 9], [BOS, *[IMAGE] * 4, 5, 7, 8, 11], [BOS, 5, 7, 8, 9, 10, 6]]
    ids = torch.tensor([[PAD] * (max(map(len, rows)) - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), **images}, rows


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("vision", ["clip", "siglip2"])
@variants
def test_a_padded_batch_equals_its_rows(tiny, variant, vision, beams):
    model = tiny.edge(vision=vision, **variant)
    batch, rows = batch_of(tiny, model)
    together = model.generate(**batch, **GREEDY, num_beams=beams)
    first = 0
    for row, number, answer in zip(rows, (2, 1, 0), together, strict=True):
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        images = {name: batch[name][first : first + number] for name in names if number and name in batch}
        alone = model.generate(input_ids=torch.tensor([row]), **images, **GREEDY, num_beams=beams)
        assert torch.equal(answer[-6:], alone[0, -6:])
        first += number


@variants
def test_sampling_is_the_same_with_every_cache(tiny, variant):
    model = tiny.edge(vision="siglip2", **variant)
    batch, _ = batch_of(tiny, model)
    answers = []
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}, {}):
        torch.manual_seed(5 + len(answers) // 3)
        answers.append(model.generate(**batch, **SAMPLED, num_return_sequences=2, **settings))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[3])


@variants
def test_scores_are_those_of_one_forward(tiny, variant):
    model = tiny.edge(**variant)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6)])
    result = model.generate(**inputs, **GREEDY, return_dict_in_generate=True, output_logits=True)
    with torch.inference_mode():
        logits = model(result.sequences, pixel_values=inputs["pixel_values"]).logits
    torch.testing.assert_close(torch.stack(result.logits, 1), logits[:, 10:-1], rtol=0, atol=1e-5)


def test_streaming(edge, tiny, capsys):
    model, processor = edge
    inputs = processor(text=["USER <image> what is the shape ASSISTANT"], images=[tiny.image()], return_tensors="pt")
    whole = model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces) == processor.decode(whole)
    model.generate(**inputs, **GREEDY, streamer=TextStreamer(processor.tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == processor.decode(whole) + "\n"


def test_several_images_through_the_processor(edge, tiny):
    model, processor = edge
    processor.tokenizer.padding_side = "left"
    texts = ["USER <image> what <image> is ASSISTANT", "USER what is the shape ASSISTANT", "USER <image> ASSISTANT"]
    pictures = [tiny.image(seed, size) for seed, size in enumerate([(40, 30), (64, 64), (20, 50)])]
    flat = processor(text=list(texts), images=pictures, padding=True, return_tensors="pt")
    nested = processor(text=list(texts), images=[pictures[:2], [], pictures[2:]], padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], nested[name]) for name in flat)
    assert (flat["input_ids"] == IMAGE).sum(1).tolist() == [8, 0, 4]
    together = model.generate(**flat, **GREEDY)
    for text, own, answer in zip(texts, (pictures[:2], None, pictures[2:]), together, strict=True):
        inputs = processor(text=[text], images=own, return_tensors="pt")
        assert torch.equal(model.generate(**inputs, **GREEDY)[0, -6:], answer[-6:])


def test_several_images_through_the_chat_template(edge, tiny):
    model, processor = edge
    pictures = [tiny.image(seed) for seed in range(3)]
    messages = [
        {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "image", "image": pictures[1]},
                                     {"type": "text", "text": "what is"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "the shape"}, {"type": "image", "image": pictures[2]}]},
    ]  # fmt: skip
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    text = "<s>USER <image><image> what is <s>ASSISTANT  red <s>USER  the shape <image>ASSISTANT"
    by_hand = processor(text=[text], images=pictures, return_tensors="pt", add_special_tokens=False)
    assert torch.equal(inputs["pixel_values"], by_hand["pixel_values"])
    assert torch.equal(inputs["input_ids"], by_hand["input_ids"])
    assert torch.equal(model.generate(**inputs, **GREEDY), model.generate(**by_hand, **GREEDY))


@pytest.mark.parametrize(("texts", "numbers"), [
    (["USER <image> what"], 2), (["USER what"], 1), (["USER <image> what"], 0),
    (["USER <image> what", "USER <image> is"], 1), (["USER <image> what", "USER <image> is"], [2, 0]),
    ([], None),
])  # fmt: skip
def test_wrong_number_of_placeholders_in_the_processor(edge, tiny, texts, numbers):
    _, processor = edge
    if isinstance(numbers, list):
        images = [[tiny.image()] * number for number in numbers]
    else:
        images = [tiny.image()] * numbers if numbers else None
    with pytest.raises(ModelInputError):
        processor(text=texts or None, images=images, return_tensors="pt", padding=True)


def test_truncated_placeholders(edge, tiny):
    with pytest.raises(ModelInputError, match="count"):
        edge[1](text=["USER <image> what"], images=[tiny.image()], return_tensors="pt", max_length=3, truncation=True)
