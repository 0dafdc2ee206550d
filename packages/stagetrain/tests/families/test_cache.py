"""KV caches whose layers differ in length."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from stagetrain import CompressionSetting, attach
from stagetrain.attaching.cache_layer import CompressedLayer
from stagetrain.errors import PoolingUnsupportedError

GENERATE = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": [3, 4]}


def prefill(model: Any, batch: dict[str, Any], cache: Any = None) -> Any:
    with torch.no_grad():
        return model(**batch, use_cache=True, past_key_values=cache).past_key_values


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_layers_hold_what_they_see(cases: dict[str, Any], layer: int, lazy: bool) -> None:
    case = cases["llava"]
    model, batch = case.model(), case.batch(("titt",))
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    cache = prefill(model, batch, DynamicCache() if lazy else None)
    lengths = [held.keys.shape[2] for held in cache.layers]
    assert lengths == [12] * layer + [8] * (3 - layer)
    # Positions and masks that come from outside go on counting every token.
    assert cache.get_seq_length() == 12
    assert isinstance(cache.layers[layer], CompressedLayer)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("compressor", ["average", "average_2d", "random", "k_means"])
def test_turns_into_one_cache_equal_one_prompt(case: Any, layer: int, compressor: str) -> None:
    model, rows = case.model(), ("titt", "titt") if "qwen" not in case.name else ("tItt", "titt")
    attach(model).set(CompressionSetting(layer=layer, stride=2, compressor=compressor))
    whole = {
        name: torch.cat([case.batch((row,))[name] for row in rows], int(name in TEXTS)) for name in case.batch(rows[:1])
    }
    if case.name == "onevision":
        whole["batch_num_images"] = torch.tensor([1, 1])
    length = whole["input_ids"].shape[1]
    positions = torch.arange(length)[None]
    if "qwen" in case.name:
        positions = model.model.get_rope_index(whole["input_ids"], whole["mm_token_type_ids"], whole["image_grid_thw"])[
            0
        ]
    seen, cache, start = [], None, 0
    with torch.no_grad():
        expected = model(**whole, position_ids=positions).logits
        for row in rows:
            turn = case.batch((row,))
            end = start + turn["input_ids"].shape[1]
            turn["attention_mask"] = whole["attention_mask"][:, :end]
            output = model(**turn, position_ids=positions[..., start:end], past_key_values=cache, use_cache=True)
            seen.append(output.logits)
            cache, start = output.past_key_values, end
    torch.testing.assert_close(torch.cat(seen, 1), expected, rtol=1e-5, atol=2e-5)


TEXTS = ("input_ids", "attention_mask", "mm_token_type_ids")


@pytest.mark.parametrize("layer", [0, 1])
def test_generate_goes_on_from_a_cache(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model = case.model()
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    first = model.generate(**case.batch(("titt",)), **GENERATE, return_dict_in_generate=True)
    ids = torch.cat([first.sequences, torch.tensor([[9, 12, 7]])], 1)
    again = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=first.past_key_values, **GENERATE
    )
    pixels = case.batch(("titt",))["pixel_values"]
    anew = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **GENERATE)
    assert torch.equal(again, anew)


@pytest.mark.parametrize("layer", [0, 1])
def test_prompts_read_in_chunks_that_keep_images_whole(case: Any, layer: int) -> None:
    model, row = case.model(), ("titttttttttttttt",)
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    whole = model.generate(**case.batch(row), **GENERATE)
    chunk = 1 + case.visual("i", True).num_tokens
    assert torch.equal(model.generate(**case.batch(row), **GENERATE, prefill_chunk_size=chunk), whole)
    with pytest.raises(PoolingUnsupportedError, match="expected"):
        model.generate(**case.batch(row), **GENERATE, prefill_chunk_size=chunk - 2)


@pytest.mark.parametrize("layer", [0, 1])
def test_rows_are_chosen_repeated_cropped_and_copied_with_their_cache(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model, rows = case.model(), ("titttt", "tiitttt", "tttttttt")
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    batch = case.batch(rows)
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    new = {"input_ids": torch.tensor([[7], [8], [9]]), "position_ids": mask.sum(1, keepdim=True) - 1}
    place = {"position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}

    def last(cache: Any, order: list[int]) -> torch.Tensor:
        with torch.no_grad():
            picked = {name: value[order] for name, value in new.items()}
            logits: torch.Tensor = model(**picked, attention_mask=mask[order], past_key_values=cache).logits[:, -1]
        return logits

    cache = prefill(model, batch | place)
    kept = copy.deepcopy(cache)
    expected = last(cache, [0, 1, 2])
    cache.crop(-1)
    torch.testing.assert_close(last(cache, [0, 1, 2]), expected)
    with pytest.raises(PoolingUnsupportedError, match="expected text to crop"):
        cache.crop(-8)
    changed = copy.deepcopy(kept)
    changed.batch_repeat_interleave(2)
    torch.testing.assert_close(last(changed, [0, 0, 1, 1, 2, 2]), expected[[0, 0, 1, 1, 2, 2]])
    changed = copy.deepcopy(kept)
    changed.batch_select_indices(torch.tensor([2, 0]))
    torch.testing.assert_close(last(changed, [2, 0]), expected[[2, 0]])
    kept.reorder_cache(torch.tensor([1, 2, 0]))
    torch.testing.assert_close(last(kept, [1, 2, 0]), expected[[1, 2, 0]])
    kept.reset()
    assert kept.get_seq_length() == 0
    prefill(model, batch | place, kept)
    torch.testing.assert_close(last(kept, [0, 1, 2]), expected)


@pytest.mark.parametrize("layer", [0, 1])
def test_caches_of_other_settings_are_refused(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model, batch = case.model(), case.batch(("titt",))
    attachment = attach(model)
    plain = prefill(model, batch)
    next_token = {"input_ids": torch.tensor([[7]])}
    attachment.set(CompressionSetting(layer=layer, stride=2))
    own = prefill(model, batch)
    with pytest.raises(PoolingUnsupportedError, match="begun with no compression"):
        prefill(model, next_token, plain)
    with pytest.raises(PoolingUnsupportedError, match="12 tokens in 2 rows"):
        prefill(model, {"input_ids": torch.tensor([[7], [7]])}, copy.deepcopy(own))
    for other in ({"stride": 3}, {"layer": 2}, {"compressor": "random"}):
        attachment.set(CompressionSetting(**{"layer": layer, "stride": 2, **other}))
        with pytest.raises(PoolingUnsupportedError, match="expected a cache begun with"):
            prefill(model, next_token, copy.deepcopy(own))
    attachment.clear()
    with pytest.raises(PoolingUnsupportedError, match="expected a cache begun without compression"):
        prefill(model, next_token, own)


@pytest.mark.parametrize("layer", [0, 1])
def test_caches_of_fixed_length_are_refused(cases: dict[str, Any], layer: int) -> None:
    model, batch = cases["llava"].model(), cases["llava"].batch(("titt",))
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    with pytest.raises(PoolingUnsupportedError, match="expected a cache of DynamicLayer, got StaticLayer"):
        prefill(model, batch, StaticCache(model.config, 40))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_cache_survives_training_with_checkpointing(cases: dict[str, Any], layer: int) -> None:
    case = cases["llava"]
    model, batch = case.model().train(), case.batch(with_labels=True)
    model.activation_checkpointing_enable()
    attach(model).set(CompressionSetting(layer=layer, stride=2))
    expected = model(**batch, use_cache=False).loss
    assert torch.equal(model(**batch, use_cache=True).loss, expected)
    assert torch.equal(model(**batch, use_cache=True, past_key_values=DynamicCache()).loss, expected)
