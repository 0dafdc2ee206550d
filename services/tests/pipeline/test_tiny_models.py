import pytest
import torch
from PIL import Image

from vlmpress.data import Record, Turn
from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower

TEXTS = ["is there a red shape?", "It's 3.5, isn't it?", "what  color?", "red"]


@pytest.fixture(scope="module")
def records():
    return [Record(str(i), (), (Turn(text, "yes"),)) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def processor(records):
    return build_processor(records, TinyShape())


@pytest.mark.parametrize("text", TEXTS)
def test_known_words_come_back_as_they_were(processor, text):
    ids = processor.tokenizer(text).input_ids
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids) == text.lower()


def test_a_prompt_is_the_beginning_of_its_conversation(processor):
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]}
    answer = {"role": "assistant", "content": "red"}
    prompt = processor.apply_chat_template([user], add_generation_prompt=True)
    assert processor.apply_chat_template([user, answer]) == prompt + "red</s>"


def test_the_model_takes_what_the_processor_makes(processor):
    shape = TinyShape()
    model = build_llava(build_tower(shape, 0), processor, shape, 2, 0)
    image = Image.new("RGB", (50, 80), "red")
    inputs = processor(text="<user><image>what color?<assistant>", images=image, return_tensors="pt")
    assert int((inputs.input_ids == processor.image_token_id).sum()) == shape.num_visual_tokens
    logits = model(**inputs).logits
    assert logits.shape == (1, inputs.input_ids.shape[1], len(processor.tokenizer))
    assert torch.isfinite(logits).all()


def test_same_seed_same_weights(processor):
    shape = TinyShape()
    one, two = (build_llava(build_tower(shape, 3), processor, shape, 2, 4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_processor_survives_saving(processor, tmp_path):
    from transformers import AutoProcessor

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    image = Image.new("RGB", (64, 64), "blue")
    text = "<user><image>what color?<assistant>"
    one, two = (each(text=text, images=image, return_tensors="pt") for each in (processor, loaded))
    assert torch.equal(one.input_ids, two.input_ids)
    assert torch.equal(one.pixel_values, two.pixel_values)
