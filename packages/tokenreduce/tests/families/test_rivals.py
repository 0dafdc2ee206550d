"""DFMR's rivals in models of every family."""

import pytest
import torch

from tokenreduce import BudgetError, PolicyError, ReductionPolicy, UnsupportedModelError, attach, views_of
from tokenreduce.families import family_of
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountsOf
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.random_pooling import RandomPooling
from tokenreduce.reducers.token_merging import TokenMerging

IMAGE = 3
NAMES = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl"]
every_family = pytest.mark.parametrize("family_case", NAMES, indirect=True)
ROWS = [([0], 5), ([1, 2], 3), ([], 9)]
COUNTED = [
    RandomDrop(num_tokens=6, seed=1),
    AttentionSelection(num_dominant=4, num_contextual=2),
    TokenMerging(num_tokens=6),
]
RIVALS = [*COUNTED, FixedPooling(factor=2), RandomPooling(seed=2), ImageDownsampling(factor=2)]


@every_family
@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: type(rival).__name__)
def test_a_rival_trains_and_generates(family_case, rival):
    model, batch = family_case.model.train(), family_case.batch(ROWS, left=True)
    family = family_of(model)
    attention, small = rival.needs_attention, rival.pixel_factor > 1
    if (attention and not family.gives_attention) or (small and not family.shrinks_pixels):
        with pytest.raises(UnsupportedModelError):
            attach(model, rival)
        return
    handle = attach(model, rival)
    loss = model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)).loss
    loss.backward()
    encoder = getattr(model.model, "vision_tower", None) or model.model.visual
    assert next(encoder.parameters()).grad.abs().sum() > 0
    if rival in COUNTED:
        # A selection keeps one newline of a view that has them.
        views = views_of(model, **batch)
        expected = [min(6, view.features[..., 0].numel()) + view.num_row_tokens for view in views]
        assert sum(handle.last_num_visual_tokens) == sum(expected)
    answer = model.eval().generate(**batch, max_new_tokens=2)
    assert answer.shape == (3, batch["input_ids"].shape[1] + 2)


@every_family
@pytest.mark.parametrize("rival", COUNTED, ids=lambda rival: type(rival).__name__)
@torch.no_grad()
def test_dfmrs_own_counts_are_what_the_language_model_sees(family_case, rival):
    model, batch = family_case.model, family_case.batch(ROWS)
    if rival.needs_attention and not family_of(model).gives_attention:
        return
    dfmr = DfmrReducer(ReductionPolicy(tau=0.9))
    handle = attach(model, dfmr)
    model(**batch, image_factors=[2, 0, 2])
    counts = handle.last_num_visual_tokens
    handle.reducer = CountsOf(decider=dfmr, rival=rival)
    model(**batch, image_factors=[2, 0, 2])
    # OneVision shrinks what is pooled once more; a selection it takes as it is.
    if family_case.name != "llava_onevision":
        assert handle.last_num_visual_tokens == counts
    limit = 2 * max(counts)
    model(**batch, max_visual_tokens=limit)
    assert handle.last_num_visual_tokens[0] <= limit
    assert sum(handle.last_num_visual_tokens[1:]) <= limit
    with pytest.raises(BudgetError):
        model(**batch, max_visual_tokens=2)


@pytest.mark.parametrize("family_case", ["llava"], indirect=True)
@torch.no_grad()
def test_options_without_use_are_refused(family_case):
    model, batch = family_case.model, family_case.batch(ROWS)
    handle = attach(model, FixedPooling(factor=2))
    for rival in RIVALS:
        handle.reducer = rival
        with pytest.raises(PolicyError, match=f"max_tokens: expected none for a {type(rival).__name__}"):
            model(**batch, max_visual_tokens=100)
    for rival in (*COUNTED, ImageDownsampling(factor=2)):
        handle.reducer = rival
        with pytest.raises(PolicyError, match=f"factor of view 1: expected none for a {type(rival).__name__}, got 2"):
            model(**batch, image_factors=[0, 2, 0])


@pytest.mark.parametrize("family_case", ["llava"], indirect=True)
@torch.no_grad()
def test_smaller_images_give_as_many_tokens_as_pooling(family_case):
    model, batch = family_case.model, family_case.batch(ROWS)
    handle = attach(model, ImageDownsampling(factor=3))
    logits = model(**batch).logits
    counts = handle.last_num_visual_tokens
    handle.reducer = FixedPooling(factor=3)
    assert model(**batch).logits.shape == logits.shape
    assert handle.last_num_visual_tokens == counts == [9, 9, 9]
