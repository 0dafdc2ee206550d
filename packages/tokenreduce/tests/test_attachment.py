import copy

import pytest
import torch
from torch import nn

from tokenreduce import (
    AttachmentError,
    ReductionPolicy,
    attach,
    detach,
    dfmr,
    features_of,
)

IMAGE, PAD, NUM_FULL = 3, 0, 64
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def visual_tokens(model, pixel_values, policy):
    """Projected tokens of every image, one image at a time; independent of the attachment."""
    parts = []
    for image in pixel_values:
        hidden = model.model.vision_tower(image[None], output_hidden_states=True).hidden_states[-1][:, 1:]
        reduction = dfmr(hidden.reshape(1, 8, 8, -1), policy.tau, policy.factors, policy.mode, policy.normalization)
        parts.append(model.model.multi_modal_projector(reduction.pooled[0]))
    return parts


def row_logits(model, ids, visual):
    """Logits of one unpadded row, its images already tokens, through the plain language model."""
    pieces, images, column = [], iter(visual), 0
    while column < len(ids):
        if ids[column] == IMAGE:
            pieces.append(next(images))
            column += NUM_FULL
        else:
            pieces.append(model.get_input_embeddings()(ids[column])[None])
            column += 1
    return model(inputs_embeds=torch.cat(pieces)[None]).logits[0]


def pad_rows(rows, left=False):
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        columns = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[index, columns], mask[index, columns] = row, 1
    return ids, mask


@pytest.mark.parametrize("mode", ["residual", "literal"])
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_mixed_batch_equals_rows_pruned_by_hand(model, pixels, prompt, make_policy, mode, left):
    # One image, two images, text only, another image; padded; ragged after reduction.
    policy = make_policy(model, mode)
    rows = [prompt(5, 1), prompt(3, 2, num_images=2), prompt(9, 3, num_images=0), prompt(2, 4), prompt(6, 5)]
    visual = visual_tokens(model, pixels, policy)
    per_row = [visual[:1], visual[1:3], [], visual[3:4], visual[4:]]
    expected = [row_logits(model, row, tokens) for row, tokens in zip(rows, per_row, strict=True)]
    ids, mask = pad_rows(rows, left)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    handle = attach(model, policy)
    logits = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, position_ids=positions).logits
    assert handle.last_num_visual_tokens == [len(tokens) for tokens in visual]
    assert len(set(handle.last_num_visual_tokens)) > 1
    real = (handle.last_columns >= 0) & (mask.gather(1, handle.last_columns.clamp_min(0)) == 1)
    for row, want in enumerate(expected):
        torch.testing.assert_close(logits[row][real[row]], want, **TOLERANCE)
    if not left:
        # Positions that nobody gave are contiguous again.
        again = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        for row, want in enumerate(expected):
            torch.testing.assert_close(again[row][real[row]], want, **TOLERANCE)


@torch.no_grad()
def test_ragged_rows_without_a_mask(model, pixels, prompt, make_policy):
    policy = make_policy(model)
    rows = torch.stack([prompt(4, seed) for seed in range(5)])
    visual = visual_tokens(model, pixels, policy)
    expected = [row_logits(model, row, [tokens]) for row, tokens in zip(rows, visual, strict=True)]
    attach(model, policy)
    logits = model(rows, pixels).logits
    for row, want in enumerate(expected):
        torch.testing.assert_close(logits[row, : len(want)], want, **TOLERANCE)


@torch.no_grad()
def test_factor_1_alone_is_the_plain_model_bit_for_bit(model, pixels, prompt):
    ids = torch.stack([prompt(4, seed) for seed in range(5)])
    plain = model(input_ids=ids, pixel_values=pixels, labels=ids)
    handle = attach(model, ReductionPolicy(tau=0.1, factors=(1,)))
    attached = model(input_ids=ids, pixel_values=pixels, labels=ids)
    assert torch.equal(plain.logits, attached.logits)
    assert torch.equal(plain.loss, attached.loss)
    assert handle.last_num_visual_tokens == [64] * 5


@torch.no_grad()
def test_text_only_is_the_plain_model_bit_for_bit(llama, prompt, make_policy):
    ids = prompt(7, num_images=0)[None]
    plain = llama(input_ids=ids).logits
    handle = attach(llama, make_policy(llama))
    assert torch.equal(plain, llama(input_ids=ids).logits)
    assert torch.equal(plain, llama(input_ids=ids, pixel_values=torch.zeros(0, 3, 64, 64)).logits)
    assert handle.last_num_visual_tokens == []


def packed_row(prefix, segments):
    """Ids, bool mask [1, T, T] and positions of a shared prefix and its question segments."""
    ids = torch.cat([prefix, *segments])
    owner = torch.cat([torch.zeros(len(prefix)), *(torch.full((len(s),), i + 1.0) for i, s in enumerate(segments))])
    mask = ((owner[:, None] == owner) | (owner == 0)).tril()
    positions = torch.cat([torch.arange(len(prefix)), *(torch.arange(len(s)) + len(prefix) for s in segments)])
    return ids, mask[None], positions


@torch.no_grad()
def test_packed_questions_equal_each_question_alone(model, pixels, prompt, make_policy):
    policy = make_policy(model)
    questions = [[prompt(n, n + 10 * row, num_images=0)[1:] for n in (3, 5, 2)][: 3 - row % 2] for row in range(5)]
    prefixes = [prompt(1, row) for row in range(5)]
    packed = [packed_row(prefix, segments) for prefix, segments in zip(prefixes, questions, strict=True)]
    longest = max(len(ids) for ids, _, _ in packed)
    ids = torch.full((5, longest), PAD)
    mask = torch.eye(longest, dtype=torch.bool).repeat(5, 1, 1, 1)
    positions = torch.zeros(5, longest, dtype=torch.long)
    for row, (row_ids, row_mask, row_positions) in enumerate(packed):
        n = len(row_ids)
        ids[row, :n], mask[row, :, :n, :n], positions[row, :n] = row_ids, row_mask, row_positions
    visual = visual_tokens(model, pixels, policy)
    expected = [
        [row_logits(model, torch.cat([prefix, s]), [tokens])[-len(s) :] for s in segments]
        for prefix, segments, tokens in zip(prefixes, questions, visual, strict=True)
    ]
    handle = attach(model, policy)
    batch = {"input_ids": ids, "pixel_values": pixels, "attention_mask": mask, "position_ids": positions}
    output = model(**batch, labels=ids.masked_fill(ids == IMAGE, -100))
    assert torch.isfinite(output.loss)
    for row, segments in enumerate(expected):
        start = len(prefixes[row]) - NUM_FULL + handle.last_num_visual_tokens[row]
        for want in segments:
            torch.testing.assert_close(output.logits[row, start : start + len(want)], want, **TOLERANCE)
            start += len(want)


@torch.no_grad()
def test_documents_that_restart_at_position_0_without_a_mask(llama, pixels, prompt, make_policy):
    # transformers reads a packed row of independent documents off its positions, when there is no cache.
    policy = make_policy(llama)
    documents = [prompt(3, 1), prompt(4, 2), prompt(2, 3)]
    visual = visual_tokens(llama, pixels[1:4], policy)
    expected = [row_logits(llama, row, [tokens]) for row, tokens in zip(documents, visual, strict=True)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    attach(llama, policy)
    batch = {"input_ids": torch.cat(documents)[None], "pixel_values": pixels[1:4], "position_ids": positions}
    logits = llama(**batch, use_cache=False).logits[0]
    torch.testing.assert_close(logits, torch.cat(expected), **TOLERANCE)


def test_loss_is_that_of_the_pruned_labels(llama, pixels, prompt, make_policy):
    policy = make_policy(llama)
    ids = torch.stack([prompt(4, seed) for seed in range(5)])
    labels = ids.clone()
    labels[:, : 1 + NUM_FULL] = -100
    total = 0.0
    with torch.no_grad():
        for row, tokens in zip(ids, visual_tokens(llama, pixels, policy), strict=True):
            logits = row_logits(llama, row, [tokens])
            total += float(nn.functional.cross_entropy(logits[-5:-1], row[-4:], reduction="sum"))
    attach(llama, policy)
    loss = llama(input_ids=ids, pixel_values=pixels, labels=labels).loss
    assert loss.item() == pytest.approx(total / 20, abs=1e-5)
    counted = llama(input_ids=ids, pixel_values=pixels, labels=labels, num_items_in_batch=40).loss
    assert counted.item() == pytest.approx(total / 40, abs=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_reach_projector_and_tower(llama, pixels, prompt, make_policy, frozen):
    ids = torch.stack([prompt(4, seed) for seed in range(5)])
    handle = attach(llama, make_policy(llama))
    llama.model.vision_tower.requires_grad_(not frozen)
    llama.train()
    llama(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    assert min(handle.last_num_visual_tokens) < 64
    for parameter in llama.model.multi_modal_projector.parameters():
        assert parameter.grad.abs().sum() > 0
        assert torch.isfinite(parameter.grad).all()
    grad = llama.model.vision_tower.get_input_embeddings().weight.grad
    assert (grad is None) if frozen else bool(grad.abs().sum() > 0)


def test_attach_and_detach_leave_nothing_behind(llama, pixels, prompt, make_policy):
    before, keys = dict(llama.__dict__), list(llama.state_dict())
    ids = torch.stack([prompt(4, seed) for seed in range(5)])
    plain = llama(input_ids=ids, pixel_values=pixels).logits
    policy = make_policy(llama)
    handle = attach(llama, policy)
    assert handle.policy is policy
    assert list(llama.state_dict()) == keys
    with pytest.raises(AttachmentError, match="detach it first"):
        attach(llama, policy)
    detach(llama)
    assert llama.__dict__ == before
    assert torch.equal(llama(input_ids=ids, pixel_values=pixels).logits, plain)
    with pytest.raises(AttachmentError, match="got none"):
        detach(llama)


def test_an_older_override_is_called_and_restored(llama, pixels, prompt, make_policy):
    calls = []
    inner = llama.forward

    def counting(*args, **kwargs):
        calls.append(kwargs["input_ids"].shape[1])
        return inner(*args, **kwargs)

    llama.forward = counting
    attach(llama, make_policy(llama))
    llama(input_ids=prompt(4)[None], pixel_values=pixels[:1])
    assert calls == [1 + 9 + 4]
    attached, llama.forward = llama.forward, counting
    with pytest.raises(AttachmentError, match="set after attach"):
        detach(llama)
    llama.forward = attached
    detach(llama)
    assert llama.forward is counting


def test_a_deep_copy_runs_its_own_weights(llama, pixels, prompt, make_policy):
    attach(llama, make_policy(llama))
    ids = prompt(4)[None]
    twin = copy.deepcopy(llama)
    with torch.no_grad():
        llama.model.multi_modal_projector.linear_2.weight.zero_()
        assert not torch.equal(llama(ids, pixels[:1]).logits, twin(ids, pixels[:1]).logits)
    detach(twin)
    assert "forward" in llama.__dict__
    assert twin.forward.__self__ is twin


@torch.no_grad()
def test_features_are_what_the_projector_saw(build_llava, pixels):
    seen = []
    for options in ({}, {"vision_feature_layer": -2}, {"vision_feature_layer": [-2, -1]}):
        model = build_llava(**options)
        hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.get_image_features(pixel_values=pixels)
        hook.remove()
        assert torch.equal(features_of(model, pixels).flatten(1, 2), seen.pop())


@torch.no_grad()
def test_another_feature_layer_is_respected(build_llava, pixels, prompt):
    model = build_llava(vision_feature_layer=-2)
    ids = prompt(4)[None]
    plain = model(ids, pixels[:1]).logits
    other = model(ids, pixels[:1], vision_feature_layer=-1).logits
    attach(model, ReductionPolicy(tau=0.1, factors=(1,)))
    assert torch.equal(model(ids, pixels[:1]).logits, plain)
    assert torch.equal(model(ids, pixels[:1], vision_feature_layer=-1).logits, other)
