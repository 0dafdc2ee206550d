"""Masks and positions as the language model gets them, for every family."""

import pytest
import torch

from tokenreduce import ReductionPolicy, attach

IMAGE, PAD = 3, 0
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
every_family = pytest.mark.parametrize(
    "family_case", ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl"], indirect=True
)


@every_family
@torch.no_grad()
def test_a_mask_is_there_only_where_something_is_padded(family_case, reducers):
    model, seen = family_case.model, []
    language_model = model.model.language_model
    language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["attention_mask"], kwargs["inputs_embeds"].shape[1])),
        with_kwargs=True,
    )
    attach(model, reducers.FixedFactor(2))
    even, uneven = [([0], 3), ([0], 3)], [([0], 3), ([], 9)]
    for rows, left, masked in ((even, False, False), (uneven, False, True), (uneven, True, True)):
        batch = family_case.batch(rows, left)
        model(**batch)
        mask, length = seen.pop()
        assert (mask is not None) == masked
        assert mask is None or (tuple(mask.shape) == (2, length) and length < batch["input_ids"].shape[1])
        assert mask is None or bool(mask[:, -1].all()) == left
    # Made ragged by the reduction: padding on the right hides itself.
    batch = family_case.batch(even)
    del batch["attention_mask"]
    model(**batch, image_factors=[1, 2])
    assert seen.pop()[0] is None
    model.generate(**batch, image_factors=[1, 2], max_new_tokens=2)
    assert [tuple(mask.shape) for mask, _ in seen] == [(2, seen[0][1]), (2, seen[0][1] + 1)]


@every_family
@torch.no_grad()
def test_positions_that_go_on_leave_no_mask(family_case, reducers):
    model, seen = family_case.model, []
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["attention_mask"], kwargs["position_ids"])), with_kwargs=True
    )
    attach(model, reducers.FixedFactor(2))
    batch = family_case.batch([([0], 3), ([0], 3)])
    length = batch["input_ids"].shape[1]
    model(**batch, position_ids=torch.arange(length).expand(2, -1), image_factors=[1, 2], use_cache=False)
    mask, positions = seen.pop()
    assert mask.shape == positions.shape
    assert positions.tolist() == [list(range(positions.shape[1]))] * 2
    restart = torch.arange(length) % (length - 2)
    batch = family_case.batch([([0], 3)])
    model(**batch, position_ids=restart[None], use_cache=False)
    mask, positions = seen.pop()
    assert mask.all()
    assert positions[0, -3:].tolist() == [len(positions[0]) - 3, 0, 1]


def packed_row(prefix, segments):
    """Ids, bool mask [1, T, T] and positions of a shared prefix and its question segments."""
    pieces = [prefix, *segments]
    owner = torch.cat([torch.full((len(piece),), index) for index, piece in enumerate(pieces)])
    mask = ((owner[:, None] == owner) | (owner == 0)).tril()
    starts = [0, *[len(prefix)] * len(segments)]
    positions = torch.cat([torch.arange(len(piece)) + start for piece, start in zip(pieces, starts, strict=True)])
    return torch.tensor([token for piece in pieces for token in piece]), mask[None], positions


@every_family
@torch.no_grad()
def test_packed_questions_equal_each_question_alone(family_case, reducers):
    case, model = family_case, family_case.model
    prefixes, questions = [case.row([0], 0), case.row([1, 2], 0)], [[[9, 8, 7], [10, 11]], [[12], [13, 14, 15, 16]]]
    factors = [[2], [3, 1]]
    packed = [packed_row(prefix, segments) for prefix, segments in zip(prefixes, questions, strict=True)]
    length = max(len(ids) for ids, _, _ in packed)
    ids = torch.full((2, length), PAD)
    mask = torch.eye(length, dtype=torch.bool).repeat(2, 1, 1, 1)
    positions = torch.zeros(2, length, dtype=torch.long)
    for row, (row_ids, row_mask, row_positions) in enumerate(packed):
        n = len(row_ids)
        ids[row, :n], mask[row, :, :n, :n], positions[row, :n] = row_ids, row_mask, row_positions
    images = {name: torch.cat([image[name] for image in case.images]) for name in case.images[0]}
    handle = attach(model, reducers.FixedFactor(1))
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **images}
    output = model(**batch, labels=ids.masked_fill(ids == IMAGE, -100), image_factors=[2, 3, 1])
    assert torch.isfinite(output.loss)
    kept, counts = handle.last_columns, handle.last_num_visual_tokens
    assert output.logits.shape[1] == kept.shape[1] < length
    for row, (prefix, segments, used) in enumerate(zip(prefixes, questions, [[0], [1, 2]], strict=True)):
        start = len(prefix) - sum(case.num_full[i] for i in used) + sum(counts[i] for i in used)
        for segment in segments:
            alone = {name: torch.cat([case.images[image][name] for image in used]) for name in images}
            alone["input_ids"] = torch.tensor([prefix + segment])
            alone["position_ids"] = torch.arange(len(prefix + segment))[None]
            want = model(**alone, image_factors=factors[row]).logits[0, -len(segment) :]
            torch.testing.assert_close(output.logits[row, start : start + len(segment)], want, **TOLERANCE)
            start += len(segment)


@every_family
@torch.no_grad()
def test_half_precision_and_a_budget_for_each_row(family_case):
    model = family_case.model.to(torch.bfloat16)
    batch = family_case.batch([([0], 3), ([1, 2], 4), ([], 2)])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    handle = attach(model, ReductionPolicy(tau=0.1, factors=(1, 2, 3)))
    assert torch.isfinite(model(**batch).logits).all()
    free = handle.last_num_visual_tokens
    limit = (free[1] + free[2]) // 2
    model(**batch, max_visual_tokens=limit)
    tight = handle.last_num_visual_tokens
    assert 0 < tight[1] + tight[2] <= limit
    assert tight[0] == free[0] or free[0] > limit >= tight[0]
