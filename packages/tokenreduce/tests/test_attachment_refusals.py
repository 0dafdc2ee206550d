import pytest
import torch
from torch import nn

from tokenreduce import (
    BudgetError,
    GridError,
    PlaceholderError,
    PolicyError,
    ReductionPolicy,
    UnsupportedModelError,
    attach,
    features_of,
    views_of,
)


def test_cls_left_in_is_refused(build_llava, pixels):
    model = build_llava(vision_feature_select_strategy="full")
    with pytest.raises(GridError, match="64 tokens of a 8 x 8 grid without CLS"):
        attach(model, ReductionPolicy(tau=0.1))
    assert "forward" not in model.__dict__
    with pytest.raises(GridError):
        features_of(model, pixels)


def test_other_models_are_refused():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        attach(nn.Linear(2, 2), ReductionPolicy(tau=0.1))


def test_a_model_without_its_head_is_refused(llama, pixels):
    for call in (lambda: attach(llama.model, ReductionPolicy(tau=0.1)), lambda: views_of(llama.model)):
        with pytest.raises(UnsupportedModelError, match=r"expected one of .*LlavaForCond.*, got LlavaModel"):
            call()


def test_what_is_neither_policy_nor_reducer_is_refused(llama):
    with pytest.raises(PolicyError, match="expected a ReductionPolicy or a reducer, got float"):
        attach(llama, 0.5)
    with pytest.raises(PolicyError, match="max_visual_tokens: expected None or an integer"):
        attach(llama, ReductionPolicy(tau=0.1), max_visual_tokens=1.5)
    assert "forward" not in llama.__dict__


def test_a_limit_below_the_largest_factors_is_refused(llama, pixels, prompt):
    attach(llama, ReductionPolicy(tau=0.1), max_visual_tokens=8)
    with pytest.raises(BudgetError, match="row 0"):
        llama(input_ids=prompt(4)[None], pixel_values=pixels[:1])
    assert llama(input_ids=prompt(4)[None], pixel_values=pixels[:1], max_visual_tokens=9).logits.shape[1] == 14


def test_batches_that_do_not_match_are_refused(llama, pixels, prompt, make_policy):
    attach(llama, make_policy(llama))
    ids, two = prompt(4)[None], pixels[:2]
    split = torch.stack([torch.cat([prompt(4)[:33], prompt(36, num_images=0)])] * 2)
    wrong = [
        {"input_ids": ids, "pixel_values": two},
        {"input_ids": ids[:, 2:], "pixel_values": two[:1]},
        {"input_ids": split, "pixel_values": two[:1]},
        {"pixel_values": two, "inputs_embeds": torch.zeros(1, 9, 64)},
        {"input_ids": ids, "pixel_values": two[:1], "attention_mask": torch.ones(1, 9)},
        {"input_ids": ids, "pixel_values": two[:1], "attention_mask": torch.zeros(1, 1, 69, 69)},
        {"input_ids": ids, "pixel_values": two[:1], "labels": ids[:, 1:]},
        {"input_ids": ids, "pixel_values": two[:1], "position_ids": torch.arange(5)[None]},
        {"input_ids": ids, "pixel_values": two[:1], "image_sizes": torch.tensor([[64, 64]])},
        {"input_ids": ids, "pixel_values": two[:1], "logits_to_keep": torch.tensor([3])},
        {"input_ids": ids, "pixel_values": two[:1], "mm_encoder_outputs": {"image": two}},
    ]
    for batch in wrong:
        with pytest.raises(PlaceholderError, match="expected"):
            llama(**batch)
