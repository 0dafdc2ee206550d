"""What a reducer may ask of a vision tower: the attention tokens receive, and smaller images."""

import pytest
import torch
from torch.nn.functional import interpolate

from tokenreduce import UnsupportedModelError, attach, views_of
from tokenreduce.families import family_of

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
with_attention = pytest.mark.parametrize(
    "family_case", ["llava", "llava_next", "llava_onevision", "internvl"], indirect=True
)
ROWS = [([0, 1], 3), ([], 4), ([2], 5)]


def attention_by_hand(model, pixel_values, layer):
    """From CLS, or the mean over all queries, of the eager layer; [n, patches]."""
    tower = model.model.vision_tower
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    weights = tower(pixel_values, output_attentions=True).attentions[layer].mean(dim=1)
    tower.set_attn_implementation(before)
    has_cls = weights.shape[-1] % 2
    return weights[:, 0, 1:] if has_cls else weights.mean(dim=1)


def attention_views(case):
    grids = family_of(case.model).encode(case.model, case.batch(ROWS), needs_attention=True).grids
    return [grid.attention for grid in grids]


@with_attention
@pytest.mark.parametrize("layer", [-1, 1])
@torch.no_grad()
def test_attention_is_that_of_the_eager_layer(family_case, layer):
    case = family_case
    case.model.config.vision_feature_layer = layer
    views = attention_views(case)
    for image in range(3):
        # State -1 comes out of the last of the two layers, state 1 out of the first.
        tiles = attention_by_hand(case.model, case.images[image]["pixel_values"], -1 if layer == -1 else 0)
        side = round(tiles.shape[1] ** 0.5)
        want = tiles[0].view(side, side)
        if case.name == "internvl":
            want = sum(want[row::2, column::2] for row in (0, 1) for column in (0, 1))
        view = views[2 * image if "llava_" in case.name else image]
        torch.testing.assert_close(view, want, **TOLERANCE)
        if image == 2 and "llava_" in case.name:
            lower = torch.cat([tiles[3].view(4, 4), tiles[4].view(4, 4)], dim=1)
            torch.testing.assert_close(views[5][4:], lower, **TOLERANCE)
    assert not case.model.model.vision_tower.get_input_embeddings()._forward_pre_hooks
    assert all(not module._forward_pre_hooks for module in case.model.modules())


@with_attention
@torch.no_grad()
def test_a_reducer_that_reads_attention(family_case, reducers):
    case, reducer = family_case, reducers.MostAttended()
    plain = case.model(**case.batch(ROWS)).logits
    handle = attach(case.model, reducer)
    case.model(**case.batch(ROWS))
    assert all(
        seen.shape == view.features.shape[:2] for seen, view in zip(reducer.seen, views_of_all(case), strict=True)
    )
    newlines = sum(view.num_row_tokens for view in views_of_all(case))
    assert sum(handle.last_num_visual_tokens) == 5 * len(reducer.seen) + newlines
    handle.reducer = reducers.FixedFactor(1)
    torch.testing.assert_close(case.model(**case.batch(ROWS)).logits, plain, **TOLERANCE)


def views_of_all(case):
    return views_of(case.model, **case.batch(ROWS))


@pytest.mark.parametrize("family_case", ["llava", "internvl"], indirect=True)
@torch.no_grad()
def test_smaller_images(family_case, reducers):
    case, model = family_case, family_case.model
    handle = attach(model, reducers.SmallerImages(1))
    output = model(**case.batch(ROWS))
    pixels = torch.cat([image["pixel_values"] for image in case.images])
    small = interpolate(pixels, scale_factor=0.5, mode="bilinear", antialias=True)
    options = {"interpolate_pos_encoding": True} if case.name == "llava" else {}
    states = model.model.vision_tower(small, **options).last_hidden_state
    if case.name == "llava":
        states = model.model.vision_tower(small, output_hidden_states=True, **options).hidden_states[-1]
    states = states[:, 1:]
    if case.name == "internvl":
        states = model.model.pixel_shuffle(states.unflatten(1, (4, 4))).flatten(1, 2)
    want = model.model.multi_modal_projector(states)
    assert handle.last_num_visual_tokens == [want.shape[1]] * 3
    got = output.image_hidden_states.reshape(want.shape)
    torch.testing.assert_close(got, want, **TOLERANCE)
    assert model.generate(**case.batch([([0], 4)]), max_new_tokens=2, do_sample=False).shape == (
        1,
        1 + case.num_full[0] + 6,
    )


@pytest.mark.parametrize(("factor", "side"), [(3, 3), (4, 2), (5, 2), (8, 1)])
@torch.no_grad()
def test_sides_are_rounded_up_to_whole_patches(build_llava, pixels, factor, side):
    model = build_llava()
    encoded = family_of(model).encode(model, {"pixel_values": pixels}, pixel_factor=factor)
    assert encoded.grids[0].features.shape[:2] == (side, side)
    assert encoded.num_placeholders == [64] * 5


@pytest.mark.parametrize("family_case", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_what_a_model_does_not_give_is_refused_by_name(family_case, reducers):
    for reducer, what in (
        (reducers.MostAttended(), "attention can be read"),
        (reducers.SmallerImages(), "smaller images"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"{type(reducer).__name__}: expected .*{what}.* got Qwen2"):
            attach(family_case.model, reducer)
    handle = attach(family_case.model, reducers.FixedFactor(2))
    handle.reducer = reducers.MostAttended()
    with pytest.raises(UnsupportedModelError, match="MostAttended"):
        family_case.model(**family_case.batch(ROWS))


@pytest.mark.parametrize("family_case", ["internvl"], indirect=True)
@torch.no_grad()
def test_internvl_views_are_shuffled_tiles(family_case):
    model, batch = family_case.model, family_case.batch(ROWS)
    seen = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for layer in (-1, 1):
        model.config.vision_feature_layer = layer
        model.model.get_image_features(batch["pixel_values"])
        views = views_of(model, **batch)
        assert torch.equal(torch.stack([view.features for view in views]).flatten(1, 2), seen.pop())
    hook.remove()
