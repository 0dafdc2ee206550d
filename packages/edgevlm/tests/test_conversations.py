"""Several images and earlier turns in one request."""

import pytest
import torch
from PIL import Image

from edgevlm import EdgeVlmProcessor, Engine
from edgevlm.errors import ImageError, PromptTooLongError, RequestError
from edgevlm.serving.prompting import chat_text
from edgevlm.serving.requests import GenerationRequest, Turn

CHAT = (
    "<s>{% for message in messages %}{{ 'USER' if message.role == 'user' else ' ASSISTANT' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}"
    "{% endfor %}{{ '</s>' if message.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT{% endif %}"
)
STRINGS = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
TURNS = (
    Turn(question="what is the shape", answer="circle", num_images=1),
    Turn(question="is it red", answer="no"),
)


@pytest.fixture
def processor(tiny):
    _, made = tiny.llava()
    made.chat_template = CHAT
    return made


def test_turns_and_images_stand_in_their_order(processor):
    text = chat_text(processor, "is it blue", history=TURNS, images_of_turns=(1, 0, 2))
    assert text == (
        "<s>USER<image> what is the shape ASSISTANT circle</s>USER is it red ASSISTANT no</s>"
        "USER<image><image> is it blue ASSISTANT"
    )


def test_templates_of_a_language_model_take_strings(processor):
    processor.chat_template = STRINGS
    text = chat_text(processor, "and now", history=TURNS[:1], images_of_turns=(1, 1))
    assert text == "[user] <image>\nwhat is the shape\n[assistant] circle\n[user] <image>\nand now\n"


def test_without_a_template_lines_follow_each_other(processor):
    processor.chat_template = None
    text = chat_text(processor, "and now\n", history=TURNS[:1], images_of_turns=(1, 0))
    assert text == "<image>\nwhat is the shape\ncircle\nand now\n"


@pytest.mark.parametrize("kind", [("llava", "llama"), ("edge", "combined", "clip"), ("edge", "cross", "siglip2")],
                         ids="-".join)  # fmt: skip
def test_a_conversation_is_what_generate_makes_of_its_text(tiny, asking, kind):
    """The engine's ids are those of Hugging Face's own generate on the rendered conversation."""
    if kind[0] == "llava":
        model, processor = tiny.llava()
        processor.chat_template = CHAT
    else:
        model = tiny.edge(*kind[1:])
        processor = asking.processor(model, CHAT)
    engine = Engine(model, processor)
    images = [tiny.image(seed, size=(30 + seed, 20)) for seed in range(3)]
    *tokens, finish = engine.generate(images, "is it blue", 6, history=TURNS)
    text = chat_text(processor, "is it blue", history=TURNS, images_of_turns=(1, 0, 2))
    inputs = processor(text=[text], images=images, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert [token.id for token in tokens] == output[0, inputs["input_ids"].shape[1] :].tolist()
    num_each = 16 if kind[0] == "llava" else 4
    assert finish.num_visual_tokens == 3 * num_each
    assert finish.num_prompt_tokens == inputs["input_ids"].shape[1]


def test_conversations_of_any_length_share_a_batch(tiny, asking):
    from edgevlm.serving.batching import Batcher

    model = tiny.edge("combined", "clip")
    engine = Engine(model, asking.processor(model, CHAT))
    engine.eos_token_ids = frozenset()
    pictures = [tiny.image(seed) for seed in range(3)]
    asked = [
        GenerationRequest(prompt="is it blue", max_new_tokens=7, images=pictures[:count], history=TURNS[:turns])
        for count, turns in ((3, 2), (1, 1), (0, 0), (2, 0), (1, 2))
    ]
    batcher = Batcher(engine, max_batch_size=3)
    handles = [batcher.submit(engine.prepare_request(one)) for one in asked]
    events = asking.drained(batcher)
    assert [events[handle] for handle in handles] == [asking.alone(engine, one) for one in asked]


def test_a_template_that_forgets_turns_or_images_is_refused(tiny):
    engine = Engine(*tiny.llava())
    with pytest.raises(RequestError, match="chat template: expected one for 2 earlier turns"):
        engine.generate([tiny.image()], "is it blue", 4, history=TURNS)
    engine.processor.chat_template = "{% if false %}image{% endif %}USER what"
    with pytest.raises(RequestError, match="1 images, got 0 image placeholders"):
        engine.generate(tiny.image(), "what", 4)


@pytest.mark.parametrize("fields", [
    {"history": (Turn(question="what is <image>", answer="red"),)},
    {"history": (Turn(question="what", answer="<image>"),)},
    {"history": TURNS},
    {"prompt": "\n"},
])  # fmt: skip
def test_bad_conversations(processor, tiny, fields):
    engine = Engine(tiny.llava()[0], processor)
    with pytest.raises(RequestError, match="expected"):
        engine.prepare_request(GenerationRequest(**({"prompt": "what", "max_new_tokens": 1} | fields)))


def test_bad_turns():
    with pytest.raises(RequestError, match="expected a question in every turn"):
        Turn(question=" ", answer="red")
    with pytest.raises(RequestError, match="at least 0, got -1"):
        Turn(question="what", answer="red", num_images=-1)


def test_one_bad_image_among_several_refuses_the_request(tiny, processor):
    engine = Engine(tiny.llava()[0], processor)
    with pytest.raises(ImageError, match="of another format"):
        engine.generate([tiny.encoded(tiny.image()), b"no image"], "what", 1)


def test_images_count_towards_the_longest_prompt(tiny, processor):
    engine = Engine(tiny.llava()[0], processor)
    picture = tiny.image()
    assert list(engine.generate([picture] * 7, "what", 1))[-1].num_visual_tokens == 112
    with pytest.raises(PromptTooLongError, match="under 128 tokens, got 13"):
        engine.generate([picture] * 8, "what", 1)


def test_decoded_images_may_be_of_any_mode(tiny, processor):
    engine = Engine(tiny.llava()[0], processor)
    grey = Image.new("L", (9, 9), 70)
    tokens = [list(engine.generate(image, "what", 3)) for image in (grey, grey.convert("RGB"))]
    assert tokens[0] == tokens[1]
    assert isinstance(engine.prepare([grey], "what")["pixel_values"], torch.Tensor)


def test_public_processor_takes_several_images(tiny, asking):
    model = tiny.edge("none", "clip")
    processor = asking.processor(model, CHAT)
    assert isinstance(processor, EdgeVlmProcessor)
    inputs = processor(text=["<image> what <image>"], images=[tiny.image(), tiny.image(1)], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 8
