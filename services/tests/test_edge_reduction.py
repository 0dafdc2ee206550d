"""tokenreduce's DFMR in the place of the edge model's compressor: tensors in, tensors out."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tokenreduce import ReductionPolicy, UnsupportedModelError, attach, detach
from tokenreduce.reducing import ReducedGrid

FUSIONS = ("none", "cross", "decoder", "combined")
MODES = ("contiguous", "uncompressed")
TOWERS = ("clip", "siglip", "siglip2")
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
POLICY = ReductionPolicy(tau=0.3)
PAD, BOS, IMAGE = 0, 2, 60
NUM_VISUAL = 36
SHAPES = ((6, 6), (4, 5), (3, 7))


def images_of(model: Any, num_images: int = 3, *, full: bool = False) -> dict[str, torch.Tensor]:
    """Random images; NaFlex ones of other sides each, unless they all fill the grid."""
    generator = torch.Generator().manual_seed(1)
    if model.config.vision_encoder != "siglip2":
        return {"pixel_values": torch.randn(num_images, 3, 48, 48, generator=generator)}
    shapes = torch.tensor([(6, 6)] * num_images if full else SHAPES[:num_images])
    return {
        "pixel_values": torch.randn(num_images, NUM_VISUAL, 3 * 8 * 8, generator=generator),
        "pixel_attention_mask": (torch.arange(NUM_VISUAL) < shapes.prod(1, keepdim=True)).int(),
        "spatial_shapes": shapes,
    }


def row(*parts: int | list[int]) -> list[int]:
    """A row of tokens; a list of one number stands for that many placeholders."""
    ids = [BOS]
    for part in parts:
        ids += [IMAGE] * part[0] if isinstance(part, list) else [part]
    return ids


def batch(rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([ids + [PAD] * (width - len(ids)) for ids in rows])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def pooled(model: Any, images: dict[str, torch.Tensor], factors: Sequence[int]) -> tuple[Any, list[int]]:
    """Slow reference: each image pooled by its factor with torch's own pooling, as the model takes it encoded."""
    features, valid = model.model.patch_features(*images.values())
    shapes = images["spatial_shapes"].tolist() if "spatial_shapes" in images else [(6, 6)] * len(features)
    tokens, places = [], []
    for image, (height, width), factor in zip(features, shapes, factors, strict=True):
        grid = image[: height * width].view(height, width, -1).permute(2, 0, 1)[None]
        index = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
        small, mean = (F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) for x in (grid, index))
        tokens.append(model.model.multi_modal_projector(small[0].flatten(1).T))
        places.append((mean.flatten() + 1e-3).long())
    return {"image": model.model.image_output(features, valid, tokens, places)}, [len(each) for each in tokens]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_factor_one_changes_nothing(edge_model: Any, fusion: str, tower: str, mode: str) -> None:
    model = edge_model(fusion, tower, mode)
    inputs = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11)]) | images_of(model, full=True)
    expected = model(**inputs).logits
    handle = attach(model, ReductionPolicy(tau=1e-6, factors=(1,)))
    torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)
    assert handle.last_num_visual_tokens == [36, 36, 36]
    detach(model)
    assert torch.equal(model(**inputs).logits, expected)


# The fusion's decoder counts a text token's place by the placeholders before it and takes no masked ones.
@pytest.mark.parametrize("fusion", FUSIONS[:2])
def test_padding_of_naflex_goes_with_its_placeholders(edge_model: Any, fusion: str) -> None:
    """Unattached, the language model sees a zero for each padded patch; attached, what it sees with those masked."""
    model = edge_model(fusion, "siglip2")
    images = images_of(model)
    inputs = batch([row([36], 7, 8, 9)] * 3) | images
    handle = attach(model, ReductionPolicy(tau=1e-6, factors=(1,)))
    logits = model(**inputs).logits
    assert handle.last_num_visual_tokens == [36, 20, 21]
    detach(model)
    assert not torch.allclose(model(**inputs).logits[1, -3:], logits[1, 21:24], atol=1e-3)
    inputs["attention_mask"][:, 1:37] = images["pixel_attention_mask"]
    masked = model(**inputs).logits[:, -3:]
    for number, count in enumerate(handle.last_num_visual_tokens):
        torch.testing.assert_close(logits[number, count + 1 : count + 4], masked[number], **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_another_factor_for_each_image_of_a_batch(edge_model: Any, fusion: str, tower: str, mode: str) -> None:
    model = edge_model(fusion, tower, mode)
    images = images_of(model)
    reference, counts = pooled(model, images, (2, 1, 3))
    small = batch([row(5, [counts[0]], 7, [counts[1]], 8, 9), row([counts[2]], 10, 11), row(12, 13, 14)])
    labels = (
        small["input_ids"]
        .masked_fill(small["input_ids"] == IMAGE, -100)
        .masked_fill(small["attention_mask"] == 0, -100)
    )
    expected = model(**small, mm_encoder_outputs=reference, labels=labels)
    handle = attach(model, POLICY)
    full = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11), row(12, 13, 14)])
    full_labels = (
        full["input_ids"].masked_fill(full["input_ids"] == IMAGE, -100).masked_fill(full["attention_mask"] == 0, -100)
    )
    output = model(**full, **images, labels=full_labels, image_factors=[2, 1, 3])
    assert handle.last_num_visual_tokens == counts
    seen = small["attention_mask"].bool()
    torch.testing.assert_close(output.logits[seen], expected.logits[seen], **TOLERANCE)
    torch.testing.assert_close(output.loss, expected.loss, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_packed_questions_equal_single_ones(edge_model: Any, fusion: str, mode: str) -> None:
    model = edge_model(fusion, "siglip2", mode).train()
    images = images_of(model, 2)
    attach(model, POLICY)
    prefix, questions = row([36], 5, [36]), ([7, 8, 9, 10], [11, 12])
    ids = torch.tensor([prefix + questions[0] + questions[1]])
    start = len(prefix)
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask[start + 4 :, start : start + 4] = False
    inputs = {
        "input_ids": ids,
        "attention_mask": mask[None, None],
        "position_ids": torch.tensor([[*range(start + 4), start, start + 1]]),
    }
    options = {"image_factors": [2, 3], **images}
    logits = model(**inputs, **options).logits
    for question, part in zip(questions, (slice(-6, -2), slice(-2, None)), strict=True):
        alone = model(input_ids=torch.tensor([prefix + question]), use_cache=False, **options).logits
        torch.testing.assert_close(logits[:, part], alone[:, -len(question) :], **TOLERANCE)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_generate_with_a_cache_equals_without(edge_model: Any, fusion: str, mode: str, beams: int) -> None:
    model = edge_model(fusion, "siglip2", mode)
    images = images_of(model)
    attach(model, POLICY)
    rows = (row(5, [36], 7, [36], 8), row([36], 10, 11))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in rows])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "image_factors": [3, 1, 2], **images}
    settings: Any = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    settings["suppress_tokens"] = [IMAGE]
    cached = model.generate(**inputs, **settings)
    assert torch.equal(model.generate(**inputs, **settings, use_cache=False), cached)
    assert torch.equal(cached[:, :width], ids)
    first = {name: value[:2] for name, value in images.items()}
    alone = model.generate(torch.tensor([rows[0]]), image_factors=[3, 1], **first, **settings)
    assert torch.equal(alone[0, -6:], cached[0, -6:])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradients_flow(edge_model: Any, fusion: str) -> None:
    model = edge_model(fusion, "siglip2").train()
    attach(model, POLICY)
    inputs = batch([row([36], 7, 8, 9, 10)] * 2) | images_of(model, 2)
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)).loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in dead if "vision_tower.embeddings.position" not in name], dead


def test_a_limit_holds_for_each_row(edge_model: Any) -> None:
    model = edge_model("combined", "siglip2")
    handle = attach(model, ReductionPolicy(tau=1e-6))
    inputs = batch([row([36], 7, [36], 8), row([36], 10)]) | images_of(model)
    model(**inputs)
    assert handle.last_num_visual_tokens == [36, 20, 21]
    model(**inputs, max_visual_tokens=20)
    first, second, third = handle.last_num_visual_tokens
    assert first + second <= 20
    assert third <= 20
    model(**inputs)
    assert handle.last_num_visual_tokens == [36, 20, 21]


class Watched:
    """A reducer that keeps each view's most watched positions, 5 of them, and remembers what it saw."""

    needs_attention = True
    pixel_factor = 1

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def reduce(self, grids: Sequence[Any], *, rows: Sequence[int], max_tokens: int | None = None) -> list[ReducedGrid]:
        """See `tokenreduce.reducing.Reducer`."""
        self.seen = [grid.attention for grid in grids]
        kept = [grid.attention.flatten().topk(5).indices.sort().values for grid in grids]
        return [
            ReducedGrid(
                tokens=grid.features.flatten(0, 1)[places],
                places=torch.stack((places // grid.features.shape[1], places % grid.features.shape[1]), dim=1).float(),
            )
            for grid, places in zip(grids, kept, strict=True)
        ]


@pytest.mark.parametrize("tower", TOWERS)
def test_a_selection_by_attention(edge_model: Any, tower: str) -> None:
    model = edge_model("combined", tower, "uncompressed")
    images = images_of(model)
    reducer = Watched()
    handle = attach(model, reducer)
    inputs = batch([row(5, [36], 7, [36], 8, 9), row([36], 10, 11)])
    logits = model(**inputs, **images).logits
    assert handle.last_num_visual_tokens == [5, 5, 5]
    detach(model)
    features, valid = model.model.patch_features(*images.values())
    shapes = images["spatial_shapes"].tolist() if tower == "siglip2" else [(6, 6)] * 3
    kept = []
    model.model.vision_tower.set_attn_implementation("eager")
    watched = model.model.vision_tower(**images, output_attentions=True).attentions[-1].mean(dim=1)
    for image, (height, width) in enumerate(shapes):
        count = height * width
        expected = watched[image, 0, 1:] if tower == "clip" else watched[image, :count, :count].mean(dim=0)
        torch.testing.assert_close(reducer.seen[image], expected.view(height, width), **TOLERANCE)
        kept.append(expected.topk(5).indices.sort().values)
    tokens = [model.model.multi_modal_projector(x[places]) for x, places in zip(features, kept, strict=True)]
    output = model.model.image_output(features, valid, tokens, kept)
    small = batch([row(5, [5], 7, [5], 8, 9), row([5], 10, 11)])
    expected_logits = model(**small, mm_encoder_outputs={"image": output}).logits
    seen = small["attention_mask"].bool()
    torch.testing.assert_close(logits[seen], expected_logits[seen], **TOLERANCE)


def test_a_compressor_must_make_room(edge_model: Any) -> None:
    model = edge_model("cross", compressor="mlp", num_compressed_tokens=9)
    with pytest.raises(UnsupportedModelError, match="build the model with compressor='none'"):
        attach(model, POLICY)
