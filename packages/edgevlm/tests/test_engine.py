import pytest
import torch
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ModelDirectoryError, PromptTooLongError, RequestError
from edgevlm.profiling.macs import prefill_macs
from edgevlm.serving.engine import Engine
from edgevlm.serving.events import Finish, FinishReason, GeneratedToken
from vlmpress.artifact import ArtifactError

PROMPT = "what is the shape"


def hf_token_ids(engine, image, prompt, max_new_tokens):
    inputs = engine.prepare(image, prompt)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    output = engine.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("with_image", [True, False])
def test_engine_equals_generate(tiny, llava_directory, with_image):
    engine = Engine.load(llava_directory)
    image = tiny.encoded(tiny.image()) if with_image else None
    *tokens, finish = engine.generate(image, PROMPT, 12)
    assert all(isinstance(token, GeneratedToken) for token in tokens)
    ids = [token.id for token in tokens]
    assert ids == hf_token_ids(engine, image, PROMPT, 12)
    assert "".join(token.text for token in tokens) == finish.text
    assert finish.text == engine.processor.tokenizer.decode(ids, skip_special_tokens=True)
    num_visual = 16 if with_image else 0
    # <s> is a token of its own in the template, and is not added again.
    assert finish.num_prompt_tokens == num_visual + 7
    assert finish.num_visual_tokens == num_visual
    assert finish.num_generated_tokens == len(ids)
    assert finish.reason is (FinishReason.STOP if ids[-1] == 3 else FinishReason.LENGTH)


def test_engine_stops_at_an_end_token(llava):
    model, processor = llava
    engine = Engine(model, processor)
    first = next(iter(engine.generate(None, PROMPT, 1)))
    model.generation_config.eos_token_id = [3, first.id]
    events = list(Engine(model, processor).generate(None, PROMPT, 5))
    assert len(events) == 2
    assert events[-1].reason is FinishReason.STOP


def test_engine_facts(llava_directory):
    engine = Engine.load(llava_directory)
    model = AutoModelForImageTextToText.from_pretrained(llava_directory)
    assert engine.model_type == "llava"
    assert engine.num_params == model.num_parameters()
    assert engine.max_positions == 128


@pytest.mark.parametrize("prompt", ["", "  ", "what is <image> the"])
def test_bad_prompt(llava, prompt):
    with pytest.raises(RequestError):
        Engine(*llava).generate(None, prompt, 4)


def test_bad_max_new_tokens(llava):
    with pytest.raises(RequestError, match="at least 1, got 0"):
        Engine(*llava).generate(None, PROMPT, 0)


def test_too_long_prompt_and_end_of_positions(tiny):
    engine = Engine(*tiny.llava(max_position_embeddings=24))
    with pytest.raises(PromptTooLongError):
        engine.generate(tiny.image(), PROMPT + " red", 4)
    finish = list(engine.generate(tiny.image(), PROMPT, 50))[-1]
    assert isinstance(finish, Finish)
    assert finish.num_prompt_tokens + finish.num_generated_tokens <= 24


def test_no_model(tmp_path):
    with pytest.raises(ArtifactError):
        Engine.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ModelDirectoryError):
        Engine.load(tmp_path)


def test_reducer_counts(tiny, llava):
    class Handle:
        last_num_visual_tokens = (4,)

    finish = list(Engine(*llava, reducer=Handle()).generate(tiny.image(), PROMPT, 1))[-1]
    assert finish.num_visual_tokens == 4
    assert finish.num_prompt_tokens == 7 + 4


class LimitedReducer:
    """Stands for an attached reducer: keeps to a limit from 4 up, and says so."""

    def __init__(self, model):
        self.last_num_visual_tokens, self.limits, self._forward = [], [], model.forward
        model.forward = self

    def __call__(self, *args, logits_to_keep=0, max_visual_tokens=None, **kwargs):
        if "pixel_values" in kwargs:
            self.limits.append(max_visual_tokens)
            if max_visual_tokens is not None and max_visual_tokens < 4:
                raise ValueError(f"budget: expected at least 4, got {max_visual_tokens}")
            self.last_num_visual_tokens = [min(16, max_visual_tokens or 16)]
        return self._forward(*args, logits_to_keep=logits_to_keep, **kwargs)


def test_a_limit_of_visual_tokens_is_the_reducer_s(tiny, llava):
    model, processor = llava
    reducer = LimitedReducer(model)
    engine = Engine(model, processor, reducer=reducer)
    seen = [list(engine.generate(tiny.image(), PROMPT, 2, limit))[-1].num_visual_tokens for limit in (None, 40, 5, 4)]
    assert seen == [16, 16, 5, 4]
    assert reducer.limits == [None, 40, 5, 4]
    with pytest.raises(RequestError, match="max_visual_tokens=3: budget: expected at least 4, got 3"):
        next(engine.generate(tiny.image(), PROMPT, 2, 3))
    # It answers on, and a question without an image has nothing to limit.
    assert list(engine.generate(tiny.image(), PROMPT, 2))[-1].num_visual_tokens == 16
    assert list(engine.generate(None, PROMPT, 2, 1))[-1].num_visual_tokens == 0


def test_a_limit_without_a_reducer(tiny, llava):
    engine = Engine(*llava)
    unlimited = list(engine.generate(tiny.image(), PROMPT, 4))
    assert list(engine.generate(tiny.image(), PROMPT, 4, 16)) == unlimited
    with pytest.raises(RequestError, match=r"at least 16, which the image needs .*, got 15"):
        engine.generate(tiny.image(), PROMPT, 4, 15)
    with pytest.raises(RequestError, match="max_visual_tokens: expected at least 1, got 0"):
        engine.generate(tiny.image(), PROMPT, 4, 0)
    assert list(engine.generate(None, PROMPT, 2, 1))[-1].num_visual_tokens == 0


def test_errors_of_the_model_stay_what_they_are(tiny, llava):
    model, processor = llava

    def broken(**_):
        raise ValueError("broken")

    model.forward = broken
    with pytest.raises(ValueError, match=r"^broken$"):
        next(Engine(model, processor).generate(tiny.image(), PROMPT, 2, 16))


def test_prefill_macs_counts_linear_and_attention(tiny, llava):
    model, processor = llava
    engine = Engine(model, processor)
    num_tokens, vision, text = 16 + 7, 16, 32
    patches = 16 * vision * 3 * 8 * 8
    # The last layer runs too: CLIP's tower has no early exit.
    per_vision_layer = 17 * (4 * vision**2 + 2 * vision * 24) + 2 * 17 * 17 * vision
    projector = 16 * (vision * text + text * text)
    per_text_layer = num_tokens * (2 * text**2 + 2 * text * 16 + 3 * text * 48) + 2 * num_tokens**2 * text
    expected = (
        patches + 2 * per_vision_layer + projector + 2 * per_text_layer + text * model.config.text_config.vocab_size
    )
    # Rotary tables and similar batched products may add a little.
    assert prefill_macs(engine, tiny.image(), PROMPT) == pytest.approx(expected, rel=2e-3)
