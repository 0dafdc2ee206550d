"""What holds for the models of every family alike."""

import copy
import inspect

import pytest
import torch

from tokenreduce import PolicyError, attach, detach, views_of

IMAGE, NEW = 3, 5
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}
NAMES = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl"]
every_family = pytest.mark.parametrize("family_case", NAMES, indirect=True)
ROWS = [([0], 5), ([1, 2], 3), ([], 9), ([2], 6)]
FACTORS = [[2], [3, 1], [], [2]]


def flat(lists):
    return [item for items in lists for item in items]


@every_family
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_factor_1_is_the_plain_model(family_case, reducers, left):
    batch = family_case.batch(ROWS, left)
    plain = family_case.model(**batch, labels=batch["input_ids"])
    handle = attach(family_case.model, reducers.FixedFactor(1))
    attached = family_case.model(**batch, labels=batch["input_ids"])
    torch.testing.assert_close(attached.logits, plain.logits, **TOLERANCE)
    torch.testing.assert_close(attached.loss, plain.loss, **TOLERANCE)
    assert handle.last_num_visual_tokens == [family_case.num_full[image] for image in [0, 1, 2, 2]]
    assert handle.last_columns.tolist() == torch.arange(batch["input_ids"].shape[1]).expand(4, -1).tolist()
    detach(family_case.model)
    assert torch.equal(family_case.model(**batch).logits, plain.logits)


@every_family
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_a_mixed_batch_equals_each_row_alone(family_case, reducers, left):
    batch = family_case.batch(ROWS, left)
    handle = attach(family_case.model, reducers.FixedFactor(2))
    logits = family_case.model(**batch, image_factors=flat(FACTORS)).logits
    columns, counts = handle.last_columns, handle.last_num_visual_tokens
    assert all(kept <= family_case.num_full[image] for kept, image in zip(counts, [0, 1, 2, 2], strict=True))
    assert logits.shape[1] < batch["input_ids"].shape[1]
    assert logits.shape[1] == columns.shape[1]
    real = (columns >= 0) & (batch["attention_mask"].gather(1, columns.clamp_min(0)) == 1)
    for row, (content, factors) in enumerate(zip(ROWS, FACTORS, strict=True)):
        alone = family_case.batch([content])
        # Words come from the row's number.
        alone["input_ids"] = torch.tensor([family_case.row(*content, row)])
        options = {"image_factors": torch.tensor(factors)} if factors else {}
        want = family_case.model(**alone, **options).logits[0]
        torch.testing.assert_close(logits[row][real[row]], want, **TOLERANCE)


@every_family
@torch.no_grad()
def test_generate_equals_full_forwards_without_a_cache(family_case, reducers):
    model = family_case.model
    attach(model, reducers.FixedFactor(2))
    for content in ROWS[:2]:
        batch = family_case.batch([content])
        generated = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        ids, step = batch["input_ids"], dict(batch)
        for _ in range(NEW):
            token = model(**step, use_cache=False).logits[:, -1:].argmax(-1)
            step["input_ids"] = torch.cat([step["input_ids"], token], dim=1)
            for name in ("attention_mask", "mm_token_type_ids"):
                if name in step:
                    last = torch.full_like(token, name == "attention_mask", dtype=step[name].dtype)
                    step[name] = torch.cat([step[name], last], dim=1)
        assert torch.equal(generated, step["input_ids"])
        assert torch.equal(generated[:, : ids.shape[1]], ids)


@every_family
@torch.no_grad()
def test_a_loop_over_the_cache_equals_generate(family_case, reducers):
    model, batch = family_case.model, family_case.batch([ROWS[1]])
    del batch["attention_mask"]
    attach(model, reducers.FixedFactor(2))
    generated = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    output = model(**batch, use_cache=True)
    tokens = [output.logits[:, -1:].argmax(-1)]
    while len(tokens) < NEW:
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        tokens.append(output.logits[:, -1:].argmax(-1))
    assert torch.equal(torch.cat(tokens, dim=1), generated[:, -NEW:])


@every_family
@torch.no_grad()
def test_ragged_generation_beams_and_samples(family_case, reducers):
    model, batch = family_case.model, family_case.batch(ROWS, left=True)
    attach(model, reducers.FixedFactor(2))
    options = {"max_new_tokens": NEW, "image_factors": flat(FACTORS)}
    greedy = model.generate(**batch, **options, do_sample=False)
    beams = model.generate(**batch, **options, num_beams=2, num_return_sequences=2, do_sample=False)
    torch.manual_seed(0)
    samples = model.generate(**batch, **options, do_sample=True, num_return_sequences=2, top_k=1)
    assert torch.equal(samples, greedy.repeat_interleave(2, dim=0))
    for row, (content, factors) in enumerate(zip(ROWS, FACTORS, strict=True)):
        alone = family_case.batch([content])
        alone["input_ids"] = torch.tensor([family_case.row(*content, row)])
        options = {"max_new_tokens": NEW, "do_sample": False, "image_factors": factors or None}
        assert torch.equal(greedy[row, -NEW:], model.generate(**alone, **options)[0, -NEW:])
        two = model.generate(**alone, **options, num_beams=2, num_return_sequences=2)
        assert torch.equal(beams[2 * row : 2 * row + 2, -NEW:], two[:, -NEW:])


@every_family
def test_gradients_reach_the_encoder_and_the_projector(family_case, reducers):
    model, batch = family_case.model.train(), family_case.batch(ROWS)
    attach(model, reducers.FixedFactor(2))
    model(**batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)).loss.backward()
    encoder = getattr(model.model, "vision_tower", None) or model.model.visual
    projector = getattr(model.model, "multi_modal_projector", None) or encoder.merger
    assert next(encoder.parameters()).grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in projector.parameters())
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters() if parameter.grad is not None)


@every_family
@torch.no_grad()
def test_a_selection_has_no_grid(family_case, reducers):
    model, batch = family_case.model, family_case.batch(ROWS, left=True)
    handle = attach(model, reducers.EveryThird())
    logits = model(**batch).logits
    assert torch.isfinite(logits).all()
    assert set(handle.last_factors) == {None}
    third = [-(-view.features[..., 0].numel() // 3) for view in views_of(model, **batch)]
    extra = sum(view.num_row_tokens for view in views_of(model, **batch))
    assert sum(handle.last_num_visual_tokens) == sum(third) + extra
    assert model.generate(**batch, max_new_tokens=2).shape == (4, batch["input_ids"].shape[1] + 2)


@every_family
@torch.no_grad()
def test_options_never_reach_the_model(family_case, reducers):
    model, batch = family_case.model, family_case.batch(ROWS[:2], left=True)
    reducer = reducers.FixedFactor(1)
    handle = attach(model, reducer, max_visual_tokens=500)
    model(**batch)
    model(**batch, max_visual_tokens=400)
    model.generate(**batch, max_visual_tokens=300, image_factors=[2, 0, 3], max_new_tokens=1)
    assert reducer.limits == [500, 400, 300]
    first = handle.last_factors
    assert (first[0], first[-1]) == (2, 3)
    assert handle.last_num_visual_tokens[1] == family_case.num_full[1]
    handle.reducer = reducers.FixedFactor(3)
    model(**batch)
    assert set(handle.last_factors) == {3}
    text = family_case.batch([([], 7)])
    plain = model(**text, max_visual_tokens=1, image_factors=[2]).logits
    model.generate(**text, max_visual_tokens=1, max_new_tokens=1)
    empty = {name: value[:0] for name, value in family_case.images[0].items()}
    assert torch.equal(model(**text, **empty).logits, plain)
    for wrong in ({"image_factors": [1]}, {"image_factors": [1, 2, -1]}, {"max_visual_tokens": 0}):
        with pytest.raises(PolicyError, match="expected"):
            model(**batch, **wrong)


@every_family
@torch.no_grad()
def test_copies_and_signatures(family_case, reducers):
    model, batch = family_case.model, family_case.batch(ROWS[:2])
    before = list(inspect.signature(model.forward).parameters)
    attach(model, reducers.FixedFactor(2))
    assert [*before[:-1], "max_visual_tokens", "image_factors", before[-1]] == list(
        inspect.signature(model.forward).parameters
    )
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert not model(**batch).logits.any()
    assert twin(**batch).logits.any()
    detach(twin)
    assert "forward" in model.__dict__
