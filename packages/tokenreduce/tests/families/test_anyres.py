"""LLaVA-NeXT and LLaVA-OneVision: tiles put together, cut, pooled, shrunk and given newlines, by hand."""

import pytest
import torch
from torch.nn.functional import interpolate

from tokenreduce import (
    BudgetError,
    GridError,
    PlaceholderError,
    ReductionPolicy,
    UnsupportedModelError,
    attach,
    detach,
    views_of,
)
from tokenreduce.families import family_of

IMAGE, VIDEO = 3, 4
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
both = pytest.mark.parametrize("family_case", ["llava_next", "llava_onevision"], indirect=True)
onevision = pytest.mark.parametrize("family_case", ["llava_onevision"], indirect=True)
# Tiles down and across; rows and columns of the detail view once it is unpadded.
LAYOUTS = [((1, 2), slice(1, 3), slice(0, 8)), ((2, 1), slice(0, 8), slice(1, 3)), ((2, 2), slice(0, 8), slice(0, 8))]


def tower_grids(model, tiles):
    """Features [n, 4, 4, D] of tiles."""
    config = model.config
    states = model.model.vision_tower(tiles, output_hidden_states=True).hidden_states[config.vision_feature_layer]
    return (states[:, 1:] if config.vision_feature_select_strategy == "default" else states).unflatten(1, (4, 4))


def detail_by_hand(tiles, layout, rows, columns):
    whole = torch.zeros(layout[0] * 4, layout[1] * 4, tiles.shape[-1])
    for index, tile in enumerate(tiles):
        top, left = index // layout[1] * 4, index % layout[1] * 4
        whole[top : top + 4, left : left + 4] = tile
    return whole[rows, columns]


def image_by_hand(model, reducers, case, image, base_factor, detail_factor):
    project, newline = model.model.multi_modal_projector, model.model.image_newline
    tiles = tower_grids(model, case.images[image]["pixel_values"])
    parts = [project(reducers.pooled(tiles[0], base_factor).tokens)]
    reduced = reducers.pooled(detail_by_hand(tiles[1:], *LAYOUTS[image]), detail_factor)
    for row in project(reduced.tokens).view(*reduced.shape, -1):
        parts += [row, newline[None]]
    return torch.cat(parts)


@both
@torch.no_grad()
def test_tokens_are_those_made_by_hand(family_case, reducers):
    model = family_case.model
    handle = attach(model, reducers.FixedFactor(2))
    output = model(**family_case.batch([([0, 1], 3), ([2], 2)]), image_factors=[3, 1, 2])
    # Two pooled rows of the wide view: 1 x 3 and a newline. The tall one as it is. 4 x 4 of the large one.
    assert handle.last_num_visual_tokens == [4 + 4, 16 + 24, 4 + 20]
    assert handle.last_factors == [3, 3, 1, 1, 2, 2]
    want = [image_by_hand(model, reducers, family_case, image, s, s) for image, s in enumerate([3, 1, 2])]
    torch.testing.assert_close(output.image_hidden_states, torch.cat(want), **TOLERANCE)


@both
@torch.no_grad()
def test_images_of_any_size_are_what_the_model_makes_of_them(family_case, reducers):
    model, family = family_case.model, family_of(family_case.model)
    model.config.image_grid_pinpoints = [[32, 32], *model.config.image_grid_pinpoints, [96, 96]]
    sizes = torch.randint(1, 120, (25, 2), generator=torch.Generator().manual_seed(0))
    tiles = torch.randn(25, 10, 3, 32, 32)
    arguments = {"pixel_values": tiles, "image_sizes": sizes}
    encoded = family.encode(model, arguments)
    tokens = family.embed(model, encoded, [reducers.pooled(grid.features, 1) for grid in encoded.grids])
    want = model.model.get_image_features(**arguments).pooler_output
    assert encoded.num_placeholders == [len(each) for each in want]
    for each, other in zip(tokens, want, strict=True):
        torch.testing.assert_close(each, other, **TOLERANCE)


@both
@torch.no_grad()
def test_each_view_has_a_factor_of_its_own(family_case, reducers):
    class Views:
        needs_attention, pixel_factor = False, 1

        def reduce(self, grids, *, rows, max_tokens=None):
            self.rows = rows
            return [reducers.pooled(grid.features, 3 if grid.num_row_tokens else 2) for grid in grids]

    reducer = Views()
    handle = attach(family_case.model, reducer)
    output = family_case.model(**family_case.batch([([], 4), ([0], 3), ([1, 2], 2)]))
    assert reducer.rows == [1, 1, 2, 2, 2, 2]
    assert handle.last_factors == [2, 3] * 3
    want = [image_by_hand(family_case.model, reducers, family_case, image, 2, 3) for image in range(3)]
    torch.testing.assert_close(output.image_hidden_states, torch.cat(want), **TOLERANCE)


@both
@torch.no_grad()
def test_views_and_padded_tiles(family_case, reducers):
    batch = family_case.batch([([0, 1, 2], 3)])
    views = views_of(family_case.model, **batch)
    assert [tuple(view.features.shape[:2]) for view in views] == [(4, 4), (2, 8), (4, 4), (8, 2), (4, 4), (8, 8)]
    assert [view.num_row_tokens for view in views] == [0, 1] * 3
    padded = torch.zeros(3, 5, 3, 32, 32)
    for image, tiles in enumerate(image["pixel_values"] for image in family_case.images):
        padded[image, : len(tiles)] = tiles
    again = views_of(family_case.model, **batch | {"pixel_values": padded})
    for view, other in zip(views, again, strict=True):
        assert torch.equal(view.features, other.features)


@both
@torch.no_grad()
def test_a_selection_ends_in_one_newline_and_keeps_the_limit(family_case, reducers):
    class First:
        needs_attention, pixel_factor = False, 1

        def reduce(self, grids, *, rows, max_tokens=None):
            self.seen = max_tokens
            return [reducers.selected(grid.features, slice(0, max_tokens // len(grids))) for grid in grids]

    reducer, model = First(), family_case.model
    handle = attach(model, reducer, max_visual_tokens=10)
    output = model(**family_case.batch([([0], 3)]))
    # Ten tokens and a newline are one too many; of nine each view gets four.
    assert (reducer.seen, handle.last_num_visual_tokens) == (9, [9])
    assert torch.equal(output.image_hidden_states[-1], model.model.image_newline)
    tiles = tower_grids(model, family_case.images[0]["pixel_values"])
    detail = detail_by_hand(tiles[1:], *LAYOUTS[0])
    want = model.model.multi_modal_projector(torch.cat([tiles[0].flatten(0, 1)[:4], detail.flatten(0, 1)[:4]]))
    torch.testing.assert_close(output.image_hidden_states[:8], want, **TOLERANCE)


@onevision
@torch.no_grad()
def test_pooled_views_are_shrunk_by_the_models_own_rule(family_case, reducers):
    model = family_case.model
    model.config.image_grid_pinpoints, model.config.vision_aspect_ratio = [[96, 96]], "anyres_max_1"
    tiles, size = torch.randn(10, 3, 32, 32), torch.tensor([[90, 90]])
    # 12 x 12 is three times the side of one tile: 4 x 4. Pooled by 2, 6 x 6 is still 1.5 times: 4 x 4; by 3: 4 x 4.
    ids = torch.tensor([[1, *[IMAGE] * (16 + 20), 8, 9]])
    plain = model(input_ids=ids, pixel_values=tiles, image_sizes=size).logits
    handle = attach(model, reducers.FixedFactor(1))
    torch.testing.assert_close(model(input_ids=ids, pixel_values=tiles, image_sizes=size).logits, plain, **TOLERANCE)
    output = model(input_ids=ids, pixel_values=tiles, image_sizes=size, image_factors=[2])
    assert handle.last_num_visual_tokens == [4 + 20]
    grids = tower_grids(model, tiles)
    detail = reducers.pooled(detail_by_hand(grids[1:], (3, 3), slice(None), slice(None)), 2)
    projected = model.model.multi_modal_projector(detail.tokens).view(6, 6, -1)
    small = interpolate(projected.permute(2, 0, 1)[None], [4, 4], mode="bilinear")[0].permute(1, 2, 0)
    want = torch.cat([small, model.model.image_newline.expand(4, 1, -1)], dim=1).flatten(0, 1)
    torch.testing.assert_close(output.image_hidden_states[4:], want, **TOLERANCE)
    handle.reducer = reducers.EveryThird()
    with pytest.raises(GridError, match="at most its 36 placeholders"):
        model(input_ids=ids, pixel_values=tiles, image_sizes=size)


@onevision
@torch.no_grad()
def test_several_images_are_one_tile_each(family_case, reducers):
    model = family_case.model
    ids = torch.tensor([[1, *[IMAGE] * 17, 8, *[IMAGE] * 17, 9]])
    batch = {
        "input_ids": ids,
        "pixel_values": torch.randn(2, 1, 3, 32, 32),
        "image_sizes": torch.tensor([[40, 60], [50, 30]]),
        "batch_num_images": torch.tensor([2]),
    }
    plain = model(**batch).logits
    generated = model.generate(**batch, max_new_tokens=3, do_sample=False)
    reducer = reducers.FixedFactor(1)
    handle = attach(model, reducer)
    torch.testing.assert_close(model(**batch).logits, plain, **TOLERANCE)
    assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), generated)
    output = model(**batch, image_factors=[2, 3], max_visual_tokens=12)
    assert handle.last_num_visual_tokens == [5, 5]
    # Two newlines belong to the model.
    assert reducer.limits[-1] == 10
    assert torch.equal(output.image_hidden_states[[4, 9]], model.model.image_newline.expand(2, -1))
    with pytest.raises(BudgetError, match="more than the 2"):
        model(**batch, max_visual_tokens=2)
    with pytest.raises(BudgetError, match="24 more"):
        model(**batch, max_visual_tokens=10)
    with pytest.raises(PlaceholderError, match="batch_num_images"):
        model(**batch | {"batch_num_images": torch.tensor([3])})


@onevision
@torch.no_grad()
def test_videos_stay_whole(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2)])
    # Two frames of 2 x 2 and a newline.
    video = torch.tensor([[VIDEO] * 9 + [8, 9]])
    batch["input_ids"] = torch.cat([batch["input_ids"], video], dim=1)
    del batch["attention_mask"]
    videos = {"pixel_values_videos": torch.randn(1, 2, 3, 32, 32)}
    plain = model(**batch, **videos).logits
    generated = model.generate(**batch, **videos, max_new_tokens=3, do_sample=False)
    only = {"input_ids": video, **videos}
    alone = model(**only).logits
    handle = attach(model, reducers.FixedFactor(1))
    torch.testing.assert_close(model(**batch, **videos).logits, plain, **TOLERANCE)
    assert torch.equal(model.generate(**batch, **videos, max_new_tokens=3, do_sample=False), generated)
    assert torch.equal(model(**only).logits, alone)
    logits = model(**batch, **videos, image_factors=[2]).logits
    assert logits.shape[1] == plain.shape[1] - 34 + handle.last_num_visual_tokens[0]


@both
def test_bad_calls_are_refused(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 3)])
    attach(model, reducers.FixedFactor(2))
    with pytest.raises(PlaceholderError, match=r"expected \[34\]|expected 34 placeholders .* got 33"):
        model(**batch | {"input_ids": batch["input_ids"][:, 2:], "attention_mask": None})
    with pytest.raises(PlaceholderError, match="image_sizes: expected height and width"):
        model(**batch | {"image_sizes": None})
    with pytest.raises(PlaceholderError, match=r"expected \[3\] tiles"):
        model(**batch | {"pixel_values": batch["pixel_values"][:2]})
    detach(model)
    with pytest.raises(UnsupportedModelError, match="SmallerImages: expected a model that takes smaller images"):
        attach(model, reducers.SmallerImages())
    model.config.vision_feature_select_strategy = "full" if family_case.name == "llava_next" else "default"
    with pytest.raises(GridError, match="16 tokens of a 4 x 4 grid"):
        attach(model, ReductionPolicy(tau=0.1))
