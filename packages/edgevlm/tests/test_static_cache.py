"""Static caches, compiled decode steps, and caches that are cropped."""

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from edgevlm import ModelInputError
from edgevlm.model.fusion_cache import FusionState
from edgevlm.model.fusion_static import StaticFusionState

VARIANTS = [
    {"fusion": "none"}, {"fusion": "cross"}, {"fusion": "decoder"}, {"fusion": "combined"},
    {"fusion": "combined", "fusion_order": "parallel", "num_fusion_layers": 2},
]  # fmt: skip
MODES = ["contiguous", "uncompressed"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}
PAD, BOS, IMAGE = 0, 2, 4
QUESTION = (7, 8, 9, 10, 6)


def variants(function):
    return pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))(function)


def left_padded(tiny, model):
    """Three rows with two images, one and none, of different length."""
    images = tiny.inputs(model, [(7,), (7,), (7,)])
    images.pop("input_ids")
    rows = [[BOS, 5, *[IMAGE] * 4, 7, *[IMAGE] * 4, 8, 9], [BOS, *[IMAGE] * 4, 5, 7, 8, 11], [BOS, 5, 7, 8, 9, 10, 6]]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), **images}


def counting():
    """A backend for `torch.compile` that runs a graph as it is, and the list of graphs it got."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return backend, graphs


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@variants
def test_generate_equals_the_dynamic_cache(tiny, variant, mode, beams):
    model = tiny.edge(vision="siglip2", position_mode=mode, **variant)
    batch = left_padded(tiny, model)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": PAD,
                "suppress_tokens": [IMAGE]}  # fmt: skip
    dynamic = model.generate(**batch, **settings)
    result = model.generate(**batch, **settings, cache_implementation="static", return_dict_in_generate=True)
    assert isinstance(result.past_key_values, StaticCache)
    assert isinstance(FusionState.find(result.past_key_values), StaticFusionState)
    assert torch.equal(result.sequences, dynamic)
    assert torch.equal(model.generate(**batch, **settings, use_cache=False), dynamic)


@pytest.mark.parametrize(
    ("variant", "masked"), [*((variant, False) for variant in VARIANTS), *((variant, True) for variant in VARIANTS[3:])]
)
def test_compiled_step_is_one_graph_for_all_tokens(tiny, variant, masked):
    torch._dynamo.reset()
    model = tiny.edge(position_mode="uncompressed", **variant)
    batch = left_padded(tiny, model) if masked else tiny.inputs(model, [QUESTION, QUESTION])
    static, dynamic = StaticCache(config=model.config, max_cache_len=32), DynamicCache(config=model.config)
    num_rows, num_prompt = batch["input_ids"].shape
    backend, graphs = counting()
    step = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        first = model(**batch, past_key_values=static).logits
        torch.testing.assert_close(first, model(**batch, past_key_values=dynamic).logits, **TOLERANCE)
        for place, token in enumerate((8, 9, IMAGE, 10, 3), num_prompt):
            inputs = {"input_ids": torch.full((num_rows, 1), token)}
            given = dict(inputs)
            if masked:
                mask = torch.cat((batch["attention_mask"], torch.ones(num_rows, place + 1 - num_prompt)), 1).long()
                inputs["attention_mask"] = mask
                # What `generate` hands over: a mask of queries and keys of one size for all steps.
                seen = torch.zeros(num_rows, 1, 1, 32, dtype=torch.bool)
                seen[:, 0, 0, : place + 1] = mask
                given |= {"attention_mask": seen, "position_ids": mask.sum(1, keepdim=True) - 1}
            expected = model(**inputs, past_key_values=dynamic).logits
            torch.testing.assert_close(step(**given, past_key_values=static).logits, expected, **TOLERANCE)
    assert len(graphs) == 1


def test_compiled_step_of_text_alone(tiny):
    torch._dynamo.reset()
    model, (backend, graphs) = tiny.edge("combined"), counting()
    static, dynamic = StaticCache(config=model.config, max_cache_len=16), DynamicCache(config=model.config)
    step, ids = torch.compile(model, fullgraph=True, backend=backend), torch.tensor([[2, 5, 7, 8, 9]])
    with torch.no_grad():
        for cache in (static, dynamic):
            model(ids, past_key_values=cache)
        for token in (10, IMAGE, 6):
            given = torch.tensor([[token]])
            expected = model(given, past_key_values=dynamic).logits
            torch.testing.assert_close(step(given, past_key_values=static).logits, expected, **TOLERANCE)
    assert len(graphs) == 1


def test_compiled_step_with_a_dynamic_cache(tiny):
    torch._dynamo.reset()
    model = tiny.edge("combined", position_mode="uncompressed")
    inputs = tiny.inputs(model, [QUESTION, QUESTION])
    compiled, plain = DynamicCache(config=model.config), DynamicCache(config=model.config)
    step = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for cache in (compiled, plain):
            model(**inputs, past_key_values=cache)
        for token in (8, 9, 10):
            given = torch.full((2, 1), token)
            expected = model(given, past_key_values=plain).logits
            torch.testing.assert_close(step(given, past_key_values=compiled).logits, expected, **TOLERANCE)


def test_generate_compiles_by_itself(tiny):
    torch._dynamo.reset()
    model = tiny.edge("combined")
    batch, (backend, graphs) = left_padded(tiny, model), counting()
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    found = model.generate(**batch, **settings, cache_implementation="static", compile_config=config)
    assert torch.equal(found, model.generate(**batch, **settings))
    assert len(graphs) == 1


def test_static_cache_is_used_again_after_reset(tiny):
    model = tiny.edge("combined")
    cache = StaticCache(config=model.config, max_cache_len=32)
    for seed in (3, 4):
        inputs = tiny.inputs(model, [QUESTION], seed=seed)
        with torch.no_grad():
            whole = model(**inputs).logits
            prompt = inputs | {"input_ids": inputs["input_ids"][:, :8]}
            model(**prompt, past_key_values=cache)
            rest = model(inputs["input_ids"][:, 8:], past_key_values=cache).logits
        torch.testing.assert_close(rest, whole[:, 8:], **TOLERANCE)
        cache.reset()
        assert FusionState.find(cache) is None
    assert sum(isinstance(layer, FusionState) for layer in cache.layers) == 1


@pytest.mark.parametrize("masked", [False, True])
@variants
def test_cropped_tokens_leave_no_trace(tiny, variant, masked):
    model = tiny.edge(position_mode="uncompressed", **variant)
    batch = left_padded(tiny, model) if masked else tiny.inputs(model, [QUESTION, QUESTION])
    mask = batch.pop("attention_mask", None)
    num_rows, cache = len(batch["input_ids"]), DynamicCache(config=model.config)

    def step(tokens, num_before):
        seen = {} if mask is None else {
            "attention_mask": torch.cat((mask, torch.ones(num_rows, num_before + len(tokens))), 1).long()
        }  # fmt: skip
        return model(torch.tensor([tokens] * num_rows), past_key_values=cache, **seen).logits

    with torch.no_grad():
        model(**batch, **({} if mask is None else {"attention_mask": mask}), past_key_values=cache)
        step([8], 0)
        expected = step([9, 10, 11], 1)
        cache.crop(-3)
        step([12, 13, 6, 6], 1)
        cache.crop(-4)
        torch.testing.assert_close(step([9, 10], 1), expected[:, :2], **TOLERANCE)
        torch.testing.assert_close(step([11], 3), expected[:, 2:], **TOLERANCE)


def test_what_cannot_be_cropped(tiny):
    model = tiny.edge("combined")
    inputs = tiny.inputs(model)
    with torch.no_grad():
        state = FusionState.find(model(**inputs).past_key_values)
        static = StaticCache(config=model.config, max_cache_len=32)
        model(**inputs, past_key_values=static)
    for number in (1, -7):
        with pytest.raises(ModelInputError, match="crop: expected -6 to 0"):
            state.crop(number)
    state.crop(0)
    with pytest.raises(NotImplementedError):
        FusionState.find(static).crop(-1)
    for call in (lambda: state.update(None, None), lambda: state.update(None, None, layer_idx=0)):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize("mode", MODES)
@variants
def test_prompt_lookup_equals_greedy(tiny, variant, mode):
    """The prompt repeats itself around its image, so that candidates run into placeholders."""
    model = tiny.edge(position_mode=mode, **variant)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 2, 5)])
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": PAD}
    greedy = model.generate(**inputs, **settings)
    for number in (2, 5):
        assert torch.equal(model.generate(**inputs, **settings, prompt_lookup_num_tokens=number), greedy)
