import pytest
import torch
from transformers import GenerationConfig

from tokenreduce import PlaceholderError, attach, detach

IMAGE, PAD, NUM_FULL, NEW = 3, 0, 64, 6


def greedy_without_cache(model, ids, pixel_values):
    """New tokens by one full forward each."""
    for _ in range(NEW):
        logits = model(input_ids=ids, pixel_values=pixel_values, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, -NEW:]


def greedy_with_cache(model, ids, pixel_values):
    """New tokens by the loop a server runs: prefill, then one token at a time, no masks."""
    output = model(input_ids=ids, pixel_values=pixel_values, use_cache=True)
    tokens = [output.logits[:, -1:].argmax(-1)]
    while len(tokens) < NEW:
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        tokens.append(output.logits[:, -1:].argmax(-1))
    return torch.cat(tokens, dim=1)


def pad_left(rows):
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.full((longest - len(row),), PAD), row]) for row in rows])
    return ids, (ids != PAD).long()


@torch.no_grad()
def test_generate_equals_the_loop_and_full_forwards(model, pixels, prompt, make_policy):
    handle = attach(model, make_policy(model))
    counts = set()
    for index in range(5):
        ids, image = prompt(4 + index, index)[None], pixels[index : index + 1]
        generated = model.generate(input_ids=ids, pixel_values=image, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(generated[:, : ids.shape[1]], ids)
        counts.add(handle.last_num_visual_tokens[0])
        expected = greedy_without_cache(model, ids, image)
        assert torch.equal(generated[:, ids.shape[1] :], expected)
        assert torch.equal(greedy_with_cache(model, ids, image), expected)
    assert len(counts) > 1


@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_a_ragged_batch_equals_each_row_alone(model, pixels, prompt, make_policy, masked):
    attach(model, make_policy(model))
    rows = [prompt(5, 1), prompt(3, 2, num_images=2), prompt(9, 3, num_images=0), prompt(2, 4), prompt(6, 5)]
    images = [pixels[:1], pixels[1:3], None, pixels[3:4], pixels[4:]]
    ids, mask = pad_left(rows)
    extra = {"attention_mask": mask} if masked else {}
    generated = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=NEW, do_sample=False, **extra)
    assert torch.equal(generated[:, : ids.shape[1]], ids)
    for row, image, new in zip(rows, images, generated[:, ids.shape[1] :], strict=True):
        alone = model.generate(input_ids=row[None], pixel_values=image, max_new_tokens=NEW, do_sample=False)
        assert torch.equal(new, alone[0, len(row) :])


@torch.no_grad()
def test_the_cache_holds_the_reduced_prompt(llama, pixels, prompt, make_policy):
    handle = attach(llama, make_policy(llama))
    ids = prompt(4)[None]
    output = llama(input_ids=ids, pixel_values=pixels[:1], use_cache=True)
    length = ids.shape[1] - NUM_FULL + handle.last_num_visual_tokens[0]
    assert length < ids.shape[1]
    assert output.past_key_values.get_seq_length() == length == output.logits.shape[1]
    # A second image in a later turn goes on from there.
    later = prompt(3, 9)[None]
    both = torch.cat([ids, later], dim=1)
    whole = llama(input_ids=both, pixel_values=pixels[[0, 3]]).logits
    turn = llama(input_ids=later, pixel_values=pixels[3:4], past_key_values=output.past_key_values).logits
    torch.testing.assert_close(turn, whole[:, length:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_that_the_whole_prompt_would_miss_is_refused(llama, pixels, prompt, make_policy):
    attach(llama, make_policy(llama))
    ids = prompt(4)[None]
    cache = llama(input_ids=ids, pixel_values=pixels[:1], use_cache=True).past_key_values
    longer = torch.cat([ids, prompt(3, num_images=0)[None]], dim=1)
    with pytest.raises(PlaceholderError, match="expected an empty cache in generate"):
        llama.generate(input_ids=longer, past_key_values=cache, max_new_tokens=2)
    text = prompt(4, num_images=0)[None]
    cache = llama(input_ids=text, use_cache=True).past_key_values
    longer = torch.cat([text, prompt(3, 2, num_images=0)[None]], dim=1)
    generated = llama.generate(input_ids=longer, past_key_values=cache, max_new_tokens=2, do_sample=False)
    assert torch.equal(generated, llama.generate(input_ids=longer, max_new_tokens=2, do_sample=False))


@torch.no_grad()
def test_beams_samples_and_dict_output(llama, pixels, prompt, make_policy):
    ids, mask = pad_left([prompt(4, 1), prompt(7, 2)])
    attach(llama, make_policy(llama))
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels[[0, 3]], "max_new_tokens": NEW}
    beams = llama.generate(**batch, num_beams=3, num_return_sequences=2, do_sample=False)
    assert torch.equal(beams[:, : ids.shape[1]], ids.repeat_interleave(2, dim=0))
    alone = llama.generate(
        input_ids=ids[:1, -69:], pixel_values=pixels[:1], max_new_tokens=NEW, num_beams=3, num_return_sequences=2
    )
    assert torch.equal(alone[:, 69:], beams[:2, ids.shape[1] :])
    greedy = llama.generate(**batch, do_sample=False)
    output = llama.generate(**batch, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, greedy)
    assert len(output.scores) == NEW


@torch.no_grad()
def test_max_length_counts_the_callers_prompt(llama, pixels, prompt, make_policy):
    attach(llama, make_policy(llama))
    ids = prompt(4)[None]
    limit = ids.shape[1] + NEW
    expected = llama.generate(input_ids=ids, pixel_values=pixels[:1], max_new_tokens=NEW, do_sample=False)
    by_argument = llama.generate(ids, pixel_values=pixels[:1], max_length=limit, do_sample=False)
    config = GenerationConfig(max_length=limit, do_sample=False, pad_token_id=PAD)
    by_config = llama.generate(ids, config, pixel_values=pixels[:1])
    assert torch.equal(by_argument, expected)
    assert torch.equal(by_config, expected)


@torch.no_grad()
def test_detached_generate_is_the_plain_one(llama, pixels, prompt, make_policy):
    ids = prompt(4)[None]
    plain = llama.generate(input_ids=ids, pixel_values=pixels[:1], max_new_tokens=NEW, do_sample=False)
    text = llama.generate(input_ids=prompt(4, num_images=0)[None], max_new_tokens=NEW, do_sample=False)
    attach(llama, make_policy(llama))
    attached = llama.generate(input_ids=prompt(4, num_images=0)[None], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(attached, text)
    detach(llama)
    again = llama.generate(input_ids=ids, pixel_values=pixels[:1], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(again, plain)
