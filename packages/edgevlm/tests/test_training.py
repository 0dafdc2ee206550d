"""Gradients, attention backends and number formats."""

import copy

import pytest
import torch

from edgevlm import EdgeVlmForConditionalGeneration

VARIANTS = [
    {"fusion": "none"}, {"fusion": "cross"}, {"fusion": "decoder", "num_fusion_layers": 2}, {"fusion": "combined"},
    {"fusion": "combined", "fusion_order": "parallel", "num_fusion_layers": 2},
]  # fmt: skip
COMPRESSORS = ["mlp", "conv", "maxpool", "none"]
TOLERANCE = {"rtol": 0, "atol": 1e-5}
ANSWER = (7, 8, 9, 10, 6, 12, 3)


def variants(function):
    return pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))(function)


def make(tiny, compressor="mlp", **settings):
    number = 16 if compressor == "none" else 4
    return tiny.edge(vision="siglip2", num_compressed=number, compressor=compressor, **settings)


def train_step(model, inputs):
    """Loss and all gradients."""
    model.zero_grad()
    loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, -100)).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@variants
def test_checkpointing_changes_neither_loss_nor_gradients(tiny, variant):
    model = make(tiny, **variant).train()
    inputs = tiny.inputs(model, [ANSWER, ANSWER[::-1]])
    loss, gradients = train_step(model, inputs)
    for options in ({"use_reentrant": False}, {"use_reentrant": True}):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        model.enable_input_require_grads()
        again, others = train_step(model, inputs)
        assert again == pytest.approx(loss, abs=1e-6)
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, **TOLERANCE)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@variants
def test_gradients_reach_every_part(tiny, variant, compressor):
    model = make(tiny, compressor, **variant).train()
    _, gradients = train_step(model, tiny.inputs(model, [ANSWER, ANSWER]))
    # Nothing reads a key's bias: a softmax over keys does not change when all of them are shifted.
    dead = [
        name for name, p in model.named_parameters() if name not in gradients or not gradients[name].abs().sum() > 0
    ]
    assert not [name for name in dead if "k_proj.bias" not in name and "position_embedding" not in name], dead


@pytest.mark.parametrize("compressor", ["mlp", "conv"])
def test_silent_gates_and_compressor_get_gradients(tiny, compressor):
    model = make(tiny, compressor, fusion="combined", num_fusion_layers=2, open_gates=False).train()
    _, gradients = train_step(model, tiny.inputs(model, [ANSWER]))
    wanted = {"mlp": "compressor.linear_2.weight", "conv": "compressor.pool.weight"}[compressor]
    for name, gradient in gradients.items():
        # Behind the attention's own gate, the feed-forward's still gets one.
        if name.endswith("gate") or wanted in name:
            assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("side", ["left", "right"])
@variants
def test_eager_equals_sdpa(tiny, variant, side):
    model = make(tiny, **variant)
    inputs = tiny.inputs(model, [ANSWER, ANSWER])
    mask = torch.ones_like(inputs["input_ids"])
    if side == "right":
        mask[0, -3:] = 0
    else:
        inputs["input_ids"][0] = torch.tensor([0] * 3 + inputs["input_ids"][0, :-3].tolist())
        mask[0, :3] = 0
    logits = []
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        assert model.model.language_model.config._attn_implementation == backend
        with torch.inference_mode():
            logits.append(model(**inputs, attention_mask=mask).logits[mask.bool()])
    torch.testing.assert_close(*logits, **TOLERANCE)


@pytest.mark.parametrize("compressor", COMPRESSORS)
@variants
def test_bfloat16_is_finite_and_close(tiny, variant, compressor):
    config = make(tiny, compressor, **variant).config
    short = EdgeVlmForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    for name, parameter in short.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.7)
    whole = copy.deepcopy(short).float()
    inputs = tiny.inputs(short, [ANSWER, ANSWER])
    rounded = inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}
    with torch.inference_mode():
        expected = whole(**inputs | {"pixel_values": rounded["pixel_values"].float()}).logits
        got = short(**rounded).logits
        prompt = rounded | {"input_ids": inputs["input_ids"][:, :-2]}
        cache = short(**prompt).past_key_values
        last = short(inputs["input_ids"][:, -2:], past_key_values=cache).logits
    assert got.dtype == torch.bfloat16
    for found, wanted in ((got, expected), (last, expected[:, -2:])):
        assert found.isfinite().all()
        assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


def test_autocast_trains(tiny):
    model = make(tiny, "conv", fusion="combined", num_fusion_layers=2).train()
    inputs = tiny.inputs(model, [ANSWER])
    loss, _ = train_step(model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, gradients = train_step(model, inputs)
    assert mixed == pytest.approx(loss, rel=0.02)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
