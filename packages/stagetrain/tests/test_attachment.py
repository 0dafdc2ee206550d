from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stagetrain import CompressionSetting, attach
from stagetrain.errors import PoolingUnsupportedError, ScheduleError

MakeModel = Callable[..., Any]

IMAGE = 3
TOKENS = 4


def inputs(rows: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Left-padded batch; 3 in a row of ids is an image placeholder, an image takes 4 of them."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(seed)
    num_images = int((ids == IMAGE).sum()) // TOKENS
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return batch | ({"pixel_values": torch.randn(num_images, 3, 16, 16)} if num_images else {})


ONE = [4, *[IMAGE] * 4, 7, 8, 9, 10]
TWO_IMAGES = [4, *[IMAGE] * 8, 7, 8, 9]
APART = [4, *[IMAGE] * 4, 5, *[IMAGE] * 4, 7, 8, 11]
TEXT = [4, 7, 8, 9, 10, 11, 12, 4, 5, 6]


def reference_row(model: Any, ids: list[int], pixels: torch.Tensor, layer: int, stride: int) -> torch.Tensor:
    """Logits [P, V] of one unpadded row: every window averaged in a loop, every layer with its own mask and tables."""
    decoder = model.model.language_model
    hidden = decoder.embed_tokens(torch.tensor([ids])).clone()
    places = [place for place, token in enumerate(ids) if token == IMAGE]
    if places:
        hidden[0, places] = torch.cat(list(model.model.get_image_features(pixel_values=pixels).pooler_output))
    positions = list(range(len(ids)))
    for index, block in enumerate(decoder.layers):
        if index == layer:
            windows: list[list[int]] = []
            for place, token in enumerate(ids):
                number = places.index(place) // TOKENS if token == IMAGE else -1
                last = windows[-1][-1] if windows else -1
                same = last in places and places.index(last) // TOKENS == number
                if token == IMAGE and same and len(windows[-1]) < stride:
                    windows[-1].append(place)
                else:
                    windows.append([place])
            hidden = torch.stack([hidden[0, window].mean(0) for window in windows])[None]
            positions = [sum(window) // len(window) for window in windows]
        table = decoder.rotary_emb(hidden, position_ids=torch.tensor([positions]))
        causal = torch.ones(1, 1, len(positions), len(positions), dtype=torch.bool).tril()
        hidden = block(hidden, attention_mask=causal, position_embeddings=table)
    return model.lm_head(decoder.norm(hidden))[0]


@pytest.mark.parametrize("rows", [[ONE], [TWO_IMAGES], [APART], [TEXT, ONE], [ONE, TWO_IMAGES, TEXT, APART, ONE[:6]]])
@pytest.mark.parametrize(("layer", "stride"), [(1, 2), (2, 3), (3, 4), (0, 2)])
def test_logits_equal_a_token_by_token_reference(
    make_model: MakeModel, rows: list[list[int]], layer: int, stride: int
) -> None:
    model, batch = make_model(4), inputs(rows)
    attach(model).set(CompressionSetting(layer=layer, stride=stride))
    with torch.no_grad():
        logits = model(**batch).logits
        used = 0
        plain = make_model(4)
        for index, row in enumerate(rows):
            count = row.count(IMAGE) // TOKENS
            pixels = batch["pixel_values"][used : used + count] if count else torch.empty(0)
            expected = reference_row(plain, row, pixels, layer, stride)
            used += count
            torch.testing.assert_close(logits[index, -len(expected) :], expected, rtol=1e-5, atol=1e-5)


def test_loss_is_over_the_shorter_logits(make_model: MakeModel) -> None:
    model, batch = make_model(3), inputs([ONE, TEXT, TWO_IMAGES])
    attach(model).set(CompressionSetting(layer=1, stride=3))
    unpredicted = (batch["input_ids"] == IMAGE) | (batch["position_ids"] == 0)
    labels = torch.where(unpredicted, -100, batch["input_ids"])
    output = model(**batch, labels=labels)
    total = count = 0.0
    for index, row in enumerate([ONE, TEXT, TWO_IMAGES]):
        kept, images = [], row.count(IMAGE) // TOKENS
        for token in row:
            kept.append(token if token != IMAGE else -100)
        text = [token for token in kept if token != -100]
        first = kept.index(-100) if images else len(kept)
        pooled = [*text[:first], *[-100] * (2 * images), *text[first:]]
        logits = output.logits[index, -len(pooled) :]
        total += F.cross_entropy(logits[:-1], torch.tensor(pooled[1:]), reduction="sum").item()
        count += sum(token != -100 for token in pooled[1:])
    assert output.loss.item() == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO_IMAGES, TEXT, APART], [TEXT]])
@pytest.mark.parametrize("chunk", [1, 2])
def test_cached_decode_equals_one_uncached_forward(make_model: MakeModel, rows: list[list[int]], chunk: int) -> None:
    model, batch = make_model(4), inputs(rows)
    attach(model).set(CompressionSetting(layer=2, stride=3))
    torch.manual_seed(1)
    extra = torch.randint(4, len("abcdefghijkl"), (len(rows), 4))
    with torch.no_grad():
        cache = None
        seen = []
        mask, positions = batch["attention_mask"], batch["position_ids"]
        first = model(**batch, use_cache=True)
        cache, seen = first.past_key_values, [first.logits]
        for start in range(0, 4, chunk):
            new = extra[:, start : start + chunk]
            mask = torch.cat([mask, torch.ones_like(new)], 1)
            positions = positions[:, -1:] + torch.arange(1, chunk + 1)
            output = model(input_ids=new, attention_mask=mask, position_ids=positions, past_key_values=cache)
            seen.append(output.logits)
        whole = dict(batch, input_ids=torch.cat([batch["input_ids"], extra], 1), attention_mask=mask)
        whole["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(**whole).logits
    lengths = [cache.get_seq_length(layer) for layer in range(4)]
    assert lengths[:2] == [mask.shape[1]] * 2
    assert lengths[2] == lengths[3] == expected.shape[1]
    if rows == [ONE]:
        assert lengths[2] == mask.shape[1] - 2
    torch.testing.assert_close(torch.cat(seen, 1)[:, -6:], expected[:, -6:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("rows", [[ONE], [ONE, TWO_IMAGES, TEXT[:4], APART]])
def test_generation_with_cache_equals_generation_without(
    make_model: MakeModel, rows: list[list[int]], settings: dict[str, Any]
) -> None:
    model, batch = make_model(4), inputs(rows)
    del batch["position_ids"]
    attach(model).set(CompressionSetting(layer=1, stride=3))
    # What is generated must not be an image placeholder, which nothing stands for.
    settings = {**settings, "do_sample": False, "max_new_tokens": 6, "suppress_tokens": [IMAGE, 1]}
    cached = model.generate(**batch, use_cache=True, **settings)
    if settings.get("num_beams", 1) == 1:
        with torch.no_grad():
            ids, mask = batch["input_ids"], batch["attention_mask"]
            for _ in range(6):
                positions = (mask.cumsum(1) - 1).clamp(min=0)
                whole = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
                scores = model(**whole, pixel_values=batch["pixel_values"]).logits[:, -1]
                scores[:, [IMAGE, 1]] = -torch.inf
                ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        assert torch.equal(cached, ids)
    assert cached.shape[1] == batch["input_ids"].shape[1] + 6


def test_an_image_in_a_later_turn_is_pooled_into_the_same_cache(make_model: MakeModel) -> None:
    model, batch = make_model(3), inputs([APART])
    attach(model).set(CompressionSetting(layer=1, stride=2))
    with torch.no_grad():
        whole = model(**batch).logits
        cache = None
        pieces = []
        for start, end, image in ((0, 5, 0), (5, 6, None), (6, len(APART), 1)):
            pixels = {} if image is None else {"pixel_values": batch["pixel_values"][image : image + 1]}
            output = model(
                input_ids=batch["input_ids"][:, start:end],
                attention_mask=batch["attention_mask"][:, :end],
                position_ids=batch["position_ids"][:, start:end],
                past_key_values=cache,
                use_cache=True,
                **pixels,
            )
            cache = output.past_key_values
            pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("layer", "stride"), [(3, 2), (-1, 2), (1, 0), (1, 5)])
def test_impossible_places_are_refused(make_model: MakeModel, layer: int, stride: int) -> None:
    with pytest.raises(ScheduleError, match=r"expected a (layer|stride)"):
        attach(make_model(3)).set(CompressionSetting(layer=layer, stride=stride))


def test_a_learned_compressor_serves_no_more_slots_than_it_was_made_for(make_model: MakeModel) -> None:
    attachment = attach(make_model(3))
    wide, narrow = (CompressionSetting(layer=0, stride=stride, compressor="q_former") for stride in (2, 4))
    attachment.set(narrow)
    module = attachment.module
    with pytest.raises(ScheduleError, match="at most the 1 slots it was made for, got 2"):
        attachment.set(wide)
    attachment.detach()
    attachment.set(wide)
    assert attachment.module is not module
    module = attachment.module
    attachment.set(narrow)
    assert attachment.module is module


def test_calls_that_hide_the_visual_tokens_are_refused(make_model: MakeModel) -> None:
    model, batch = make_model(3), inputs([ONE])
    attach(model).set(CompressionSetting(layer=1, stride=2))
    with pytest.raises(PoolingUnsupportedError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    with pytest.raises(PoolingUnsupportedError, match="logits_to_keep"):
        model(**batch, logits_to_keep=torch.tensor([1]))
