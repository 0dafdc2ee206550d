"""Qwen2-VL and Qwen2.5-VL: positions of three coordinates, by hand."""

import pytest
import torch

from tokenreduce import PlaceholderError, attach, views_of

IMAGE, VIDEO, NEW = 3, 4, 4
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
qwen = pytest.mark.parametrize("family_case", ["qwen2_vl", "qwen2_5_vl"], indirect=True)


def seen_positions(model):
    """Collects the positions the language model is called with."""
    seen = []
    language_model = model.model.language_model
    language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    return seen


@qwen
@torch.no_grad()
def test_views_are_merged_frames(family_case):
    batch = family_case.batch([([0], 3), ([1, 2], 3)])
    views = views_of(family_case.model, **batch)
    assert [tuple(view.features.shape[:2]) for view in views] == [(4, 6), (2, 2), (6, 4), (6, 4)]
    whole = family_case.model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
    assert torch.equal(torch.cat([view.features.flatten(0, 1) for view in views]), torch.cat(whole))


@qwen
@torch.no_grad()
def test_tokens_keep_their_place_and_text_its_positions(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2)])
    seen = seen_positions(model)
    attach(model, reducers.FixedFactor(2))
    model(**batch)
    # Start and vision start: 0, 1. A 4 x 6 grid from 2 on, of it 2 x 3 windows with means 0.5 and 2.5, then the
    # columns' 4.5: rows 2, 4 and columns 2, 4, 6. Text goes on behind the longer side: 8 to 10.
    rows, columns = [2, 2, 2, 4, 4, 4], [2, 4, 6, 2, 4, 6]
    want = [[0, 1, *middle, 8, 9, 10] for middle in ([2] * 6, rows, columns)]
    assert seen.pop()[:, 0].tolist() == want
    # Eleven tokens are left, and the next one is at position 11.
    assert model.model.rope_deltas.tolist() == [[0]]
    model(**batch, image_factors=[3])
    # Windows of 3 x 3 and what is left of the rows: means 1 and 3.
    rows, columns = [3, 3, 5, 5], [3, 6, 3, 6]
    assert seen.pop()[:, 0].tolist() == [[0, 1, *middle, 8, 9, 10] for middle in ([2] * 4, rows, columns)]
    assert model.model.rope_deltas.tolist() == [[2]]


@qwen
@torch.no_grad()
def test_decoding_goes_on_from_the_whole_prompt(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2), ([], 9), ([1, 2], 1)], left=True)
    whole, _ = model.model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"], attention_mask=batch["attention_mask"]
    )
    last = whole.amax(dim=(0, 2))
    seen = seen_positions(model)
    handle = attach(model, reducers.FixedFactor(3))
    model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    assert handle.last_columns.shape[1] == seen[0].shape[2] < batch["input_ids"].shape[1]
    for step, positions in enumerate(seen[1:], start=1):
        assert positions[-3:, :, 0].tolist() == [(last + step).tolist()] * 3


@qwen
@torch.no_grad()
def test_given_positions_of_three_coordinates(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2), ([1], 5)])
    del batch["attention_mask"]
    computed, _ = model.model.get_rope_index(batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"])
    seen = seen_positions(model)
    attach(model, reducers.FixedFactor(2))
    model(**batch)
    model(**batch, position_ids=computed)
    text = torch.arange(batch["input_ids"].shape[1]).expand(1, 2, -1)
    model(**batch, position_ids=torch.cat([text, computed]))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2][1:])
    assert seen[2][0].tolist() == [list(range(seen[0].shape[2]))] * 2


@qwen
@torch.no_grad()
def test_videos_stay_whole(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2)])
    video = torch.tensor([[5, *[VIDEO] * 8, 6, 8, 9]])
    ids = torch.cat([batch["input_ids"], video], dim=1)
    grid = torch.tensor([[2, 4, 4]])
    batch |= {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(32, 96),
        "video_grid_thw": grid,
    }
    plain = model(**batch).logits
    generated = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    handle = attach(model, reducers.FixedFactor(1))
    torch.testing.assert_close(model(**batch).logits, plain, **TOLERANCE)
    assert torch.equal(model.generate(**batch, max_new_tokens=NEW, do_sample=False), generated)
    logits = model(**batch, image_factors=[2]).logits
    assert handle.last_num_visual_tokens == [6]
    assert logits.shape[1] == plain.shape[1] - 18


@qwen
@torch.no_grad()
def test_a_later_turn_counts_on(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 2)])
    del batch["attention_mask"]
    first = model(**batch, use_cache=True)
    later = family_case.batch([([1], 3)])
    del later["attention_mask"]
    plain = model(**later, past_key_values=first.past_key_values).logits
    attach(model, reducers.FixedFactor(1))
    first = model(**batch, use_cache=True)
    torch.testing.assert_close(model(**later, past_key_values=first.past_key_values).logits, plain, **TOLERANCE)


@qwen
def test_bad_calls_are_refused(family_case, reducers):
    model, batch = family_case.model, family_case.batch([([0], 3)])
    length = batch["input_ids"].shape[1]
    attach(model, reducers.FixedFactor(2))
    wrong = [
        ({"image_grid_thw": None}, "image_grid_thw: expected frames"),
        ({"image_grid_thw": torch.tensor([[1, 8, 10]])}, "expected 80 patches .* got 96"),
        ({"mm_token_type_ids": None}, "mm_token_type_ids: expected 1"),
        ({"mm_token_type_ids": torch.zeros(1, 3)}, "mm_token_type_ids"),
        ({"attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool)}, "beside a 4-D attention_mask"),
        ({"position_ids": torch.zeros(2, 1, length, dtype=torch.long)}, r"position_ids: expected shape .* got \[2, 1"),
    ]
    for change, message in wrong:
        with pytest.raises(PlaceholderError, match=message):
            model(**batch | change)
