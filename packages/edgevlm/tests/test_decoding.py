"""What a token's logits may depend on: prefill and decode, padding, packing and later tokens change nothing."""

import pytest
import torch

MODES = ["contiguous", "uncompressed"]
VARIANTS = [
    {"fusion": "none"},
    *(
        {"fusion": fusion, "num_fusion_layers": depth}
        for fusion in ("cross", "decoder", "combined")
        for depth in (1, 2)
    ),
    *({"fusion": "combined", "fusion_order": "parallel", "num_fusion_layers": depth} for depth in (1, 2)),
]
TOLERANCE = {"rtol": 0, "atol": 1e-5}
PAD, BOS, IMAGE = 0, 2, 4


def variants(function):
    names = ["-".join(str(value) for value in variant.values()) for variant in VARIANTS]
    return pytest.mark.parametrize("variant", VARIANTS, ids=names)(function)


@torch.inference_mode()
def stepwise_logits(model, inputs, num_prompt, chunk=1, **masks):
    """Logits from a prefill of `num_prompt` tokens, then `chunk` tokens at a time."""
    ids, cache, pieces, start = inputs["input_ids"], None, [], 0
    images = {name: value for name, value in inputs.items() if name != "input_ids"}
    for end in [*range(num_prompt, ids.shape[1], chunk), ids.shape[1]]:
        seen = {name: mask[:, :end] for name, mask in masks.items()}
        output = model(input_ids=ids[:, start:end], past_key_values=cache, **images, **seen)
        pieces.append(output.logits)
        cache, images, start = output.past_key_values, {}, end
    return torch.cat(pieces, dim=1)


def padded(rows, side):
    """Rows of different length as a batch, and its mask."""
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    joined = [pad + row if side == "left" else row + pad for pad, row in zip(fill, rows, strict=True)]
    ones = [[0] * len(pad) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pad)
            for pad, row in zip(fill, rows, strict=True)]  # fmt: skip
    return torch.tensor(joined), torch.tensor(ones)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vision", ["clip", "siglip", "siglip2"])
@variants
def test_prefill_and_decode_equal_one_forward(tiny, variant, vision, mode):
    """Rows with two images, one and none; padded on either side; token by token and in chunks."""
    model = tiny.edge(vision=vision, text="llama" if vision == "clip" else "qwen2", position_mode=mode, **variant)
    images = tiny.inputs(model, [(7,), (7,), (7,)])
    images.pop("input_ids")
    rows = [[BOS, 5, *[IMAGE] * 4, 7, *[IMAGE] * 4, 8, 9, 10, 6, 12, 13],
            [BOS, *[IMAGE] * 4, 5, 7, 8, 11, 6, 14], [BOS, 5, 7, 8, 9, 10, 6, 12, 13]]  # fmt: skip
    alone, first = [], 0
    with torch.inference_mode():
        for row, number in zip(rows, (2, 1, 0), strict=True):
            own = {name: value[first : first + number] for name, value in images.items()} if number else {}
            alone.append(model(input_ids=torch.tensor([row]), **own, use_cache=False).logits[0])
            first += number
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        batch = {"input_ids": ids, **images}
        with torch.inference_mode():
            found = [model(**batch, attention_mask=mask).logits]
        if side == "left":
            found += [stepwise_logits(model, batch, 12, chunk, attention_mask=mask) for chunk in (1, 3)]
        else:
            found.append(stepwise_logits(model, batch, 12, attention_mask=mask))
        for logits in found:
            for got, valid, expected in zip(logits, mask.bool(), alone, strict=True):
                torch.testing.assert_close(got[valid], expected, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@variants
def test_without_padding_and_mask(tiny, variant, mode):
    model = tiny.edge(position_mode=mode, **variant)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 13, 3), (7, 8, 9, 11, 6, 14, 15, 3)])
    with torch.inference_mode():
        whole = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, use_cache=False).logits, whole, **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, inputs, 10), whole, **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, inputs, 8, chunk=3), whole, **TOLERANCE)


@pytest.mark.parametrize("mode", MODES)
@variants
def test_no_token_sees_a_later_one(tiny, variant, mode):
    """Each row of the batch has one answer token changed."""
    model = tiny.edge(position_mode=mode, **variant)
    inputs = tiny.inputs(model, [(7, 8, 9, 10, 6, 12, 13, 14)])
    ids, places = inputs["input_ids"][0], range(6, 14)
    changed = ids.repeat(len(places) + 1, 1)
    for row, place in enumerate(places, 1):
        changed[row, place] = 16
    with torch.inference_mode():
        logits = model(input_ids=changed, pixel_values=inputs["pixel_values"].expand(len(changed), -1, -1, -1)).logits
    for row, place in enumerate(places, 1):
        torch.testing.assert_close(logits[row, :place], logits[0, :place], rtol=0, atol=1e-6)
        assert not torch.allclose(logits[row, place:], logits[0, place:], atol=1e-3)


def packed(model, questions, pixel_values):
    """One row: shared prefix, then the questions, each seeing the prefix and itself; padded at the end."""
    prefix = [2, 5] + [4] * model.config.num_compressed_tokens
    ids, positions, segments = list(prefix), list(range(len(prefix))), [-1] * len(prefix)
    for number, question in enumerate(questions):
        ids += question
        positions += range(len(prefix), len(prefix) + len(question))
        segments += [number] * len(question)
    ids, positions, segments = [*ids, 0, 0], [*positions, 0, 0], torch.tensor([*segments, 98, 99])
    causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    sees = (segments[:, None] == segments) | ((segments == -1) & (segments[:, None] < 90))
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": (causal & sees)[None, None],
        "pixel_values": pixel_values,
    }


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", MODES)
@variants
def test_packed_questions_stay_apart(tiny, variant, mode, backend):
    model = tiny.edge(position_mode=mode, **variant)
    model.set_attn_implementation(backend)
    questions = [[7, 8, 9, 10, 6, 12], [7, 8, 11], [8, 8, 9, 17, 6]]
    pixels = tiny.inputs(model)["pixel_values"]
    model.train()
    logits = model(**packed(model, questions, pixels)).logits
    assert logits.isfinite().all()
    start = 2 + model.config.num_compressed_tokens
    for number, question in enumerate(questions):
        alone = model(**tiny.inputs(model, [question])).logits
        end = start + len(question)
        torch.testing.assert_close(logits[0, start:end], alone[0, -len(question) :], **TOLERANCE)
        others = [question if index == number else [16] * len(other) for index, other in enumerate(questions)]
        changed = model(**packed(model, others, pixels)).logits
        torch.testing.assert_close(changed[0, start:end], logits[0, start:end], **TOLERANCE)
        start = end


@variants
def test_text_only_requests_are_the_language_model_s(tiny, variant):
    model = tiny.edge(**variant)
    ids = torch.tensor([[2, 5, 7, 8, 9, 10, 6, 12, 13]])
    with torch.inference_mode():
        whole = model(input_ids=ids).logits
        plain = model.model.language_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(whole, model.lm_head(plain), **TOLERANCE)
    torch.testing.assert_close(stepwise_logits(model, {"input_ids": ids}, 6), whole, **TOLERANCE)
