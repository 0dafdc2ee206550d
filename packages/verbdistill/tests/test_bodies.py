"""What a verbalizer does before the final norm: sizes of Table 4f, initialisation, kinds."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from verbdistill import Verbalizers, VerbalizersError, default_targets, response_states
from verbdistill.models.parts import final_norm
from verbdistill.verbalizers.bodies import KINDS

TABLE_4F = {
    ("mlp", 1): (89.9e6, "90M"),
    ("mlp", 2): (179.8e6, "180M"),
    ("verb_ffn", 1): (269.7e6, "269M"),
    ("verb_ffn", 2): (539.5e6, "539M"),
    ("ffn", 1): (1.426e9, "1.4B"),
    ("ffn", 2): (2.852e9, "2.9B"),
    ("decoder", 1): (1.631e9, "1.6B"),
    ("decoder", 2): (3.263e9, "3.3B"),
}
"""Seven targets at Qwen2-VL-7B's shapes: parameters by the formulas, and as printed (verb-FFN cut off, not rounded)."""


@pytest.fixture(scope="module")
def seven_billion():
    with torch.device("meta"):
        return Qwen2ForCausalLM(
            Qwen2Config(
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
                vocab_size=152064,
            )
        )


@pytest.mark.parametrize(("kind", "depth"), TABLE_4F)
def test_sizes_of_table_4f(seven_billion, kind, depth):
    size, printed = TABLE_4F[kind, depth]
    verbalizers = Verbalizers(seven_billion, default_targets(28), kind, depth)
    count = sum(parameter.numel() for parameter in verbalizers.parameters())
    assert count == pytest.approx(size, rel=1e-3)
    unit = {"M": 1e6, "B": 1e9}[printed[-1]]
    assert count / unit == pytest.approx(float(printed[:-1]), abs=1 if unit == 1e6 else 0.05)


@pytest.mark.parametrize("rms", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "decoder"])
def test_fresh_bodies_are_stable(llava, speak, kind, depth, rms):
    """Logits do not depend on the states' scale much, and gradients stay small, from embeddings to huge activations."""
    verbalizers = Verbalizers(llava(2), (1, 2), kind, depth, torch.Generator().manual_seed(0))
    states = rms * torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    logits = speak(verbalizers, [states, states])[0]
    F.cross_entropy(logits, torch.arange(64) % 12).backward()
    norms = [parameter.grad.norm() for parameter in verbalizers.bodies["1"].parameters()]
    assert 0.01 < logits.std() < 10
    assert all(0 < norm < 1 for norm in norms), norms


@pytest.mark.parametrize("depth", [1, 2])
def test_fresh_decoder_bodies_read_the_layer_as_it_is(llava, batches, depth):
    model = llava(3)
    verbalizers = Verbalizers(model, (1, 3), "decoder", depth)
    with torch.no_grad():
        whole = response_states(model, batches(0), (1, 3), whole=True)
        picked = response_states(model, batches(0), (1, 3))
        for features, states in zip(verbalizers.features(whole), picked.layers, strict=True):
            torch.testing.assert_close(features, final_norm(model)(states))
    # Once what writes to the residual is not zero, other positions are heard.
    for name, parameter in verbalizers.named_parameters():
        if name.endswith("o_proj.weight"):
            nn.init.normal_(parameter)
    other = batches(0)
    other["input_ids"][:, 4] = 5
    with torch.no_grad():
        first = verbalizers.features(whole)
        second = verbalizers.features(response_states(model, other, (1, 3), whole=True))
    assert not torch.allclose(first[0], second[0])


def test_decoder_bodies_follow_the_models_attention(llava, batches):
    """A body made under one implementation reads the masks of another."""
    model = llava(2)
    verbalizers = Verbalizers(model, (1, 2), "decoder")
    for name, parameter in verbalizers.named_parameters():
        if name.endswith("o_proj.weight"):
            nn.init.normal_(parameter)
    found = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found.append(verbalizers.features(response_states(model, batches(0), (1, 2), whole=True)))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_experts_and_norms_of_decoder_bodies_are_drawn():
    """Mixture-of-experts layers keep their matrices in stacks, which constructors leave as the memory was."""
    config = Qwen3MoeConfig(
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=8,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    (body,) = Verbalizers(model, (1,), "decoder", 1, torch.Generator().manual_seed(0))
    stacks = [(name, parameter) for name, parameter in body.named_parameters() if parameter.ndim == 3]
    assert len(stacks) == 2
    for name, parameter in stacks:
        assert float(parameter.detach().std()) == pytest.approx(0 if "down" in name else 0.25, rel=0.2)
    ids = torch.randint(8, (2, 5))
    batch = {"input_ids": ids, "labels": ids}
    with torch.no_grad():
        states = response_states(model, batch, (1,), whole=True)
        (features,) = Verbalizers(model, (1,), "decoder").features(states)
        torch.testing.assert_close(features, final_norm(model)(states.layers[0][states.positions]))


def test_two_matrices_are_not_one(llava):
    """Doubling what a linear body reads would double what it gives; between two blocks something bends."""
    verbalizers = Verbalizers(llava(2), (1,), "mlp", 2, torch.Generator().manual_seed(0), is_bare=True)
    (body,) = verbalizers
    states = torch.randn(3, 32)
    sum_of_parts = body(states) + body(-states)
    assert sum_of_parts.abs().max() > 0.1


def test_bodies_are_drawn_by_their_generator_alone(llava):
    model = llava(2)
    for kind in KINDS:
        state = torch.random.get_rng_state()
        drawn = [Verbalizers(model, (1,), kind, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert torch.equal(state, torch.random.get_rng_state())
        weights = [torch.cat([p.flatten() for p in one.parameters()]) for one in drawn]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


def test_bare_bodies_may_be_wider(llava, batches):
    model = llava(2)
    verbalizers = Verbalizers(model, (1, 2), depth=2, out_size=48, is_bare=True)
    shapes = [tuple(p.shape) for p in verbalizers.bodies["1"].parameters()]
    assert shapes == [(48, 32), (48, 32), (48, 48)] + [(48, 48)] * 3
    with torch.no_grad():
        states = response_states(model, batches(0), (1, 2))
        for body, features, part in zip(verbalizers, verbalizers.features(states), states.layers, strict=True):
            assert torch.equal(features, body(part))
            assert features.shape == (16, 48)
    with pytest.raises(VerbalizersError, match="with norm and head, got bare bodies"):
        _ = verbalizers.head
    with pytest.raises(VerbalizersError, match="out_size: expected 32, which the norm reads, got 48"):
        Verbalizers(llava(2), (1,), out_size=48)
    with pytest.raises(VerbalizersError, match="out_size: expected 32 for kind mlp, got 48"):
        Verbalizers(llava(2), (1,), "mlp", out_size=48, is_bare=True)


def test_half_precision_models_may_have_full_precision_bodies(llava, batches):
    model = llava(2).to(torch.bfloat16)
    batch = batches(0)
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    for kind in KINDS:
        verbalizers = Verbalizers(model, (1, 2), kind, dtype=torch.float32)
        with torch.no_grad():
            states = response_states(model, batch, (1, 2), whole=verbalizers.reads_whole)
        features = verbalizers.features(states)
        assert {part.dtype for part in features} == {torch.bfloat16}
        sum(part.float().square().sum() for part in features).backward()
        assert {parameter.grad.dtype for parameter in verbalizers.parameters()} == {torch.float32}


def test_unknown_kinds_and_states_that_do_not_fit_are_refused(llava, batches):
    model = llava(2)
    for kind, depth in (("rnn", 1), ("mlp", 3), ("mlp", 0)):
        with pytest.raises(
            VerbalizersError, match="expected a kind of verb_ffn, mlp, ffn, decoder and a depth of 1 or 2"
        ):
            Verbalizers(model, (1,), kind, depth)
    states = response_states(model, batches(0), (1,))
    with pytest.raises(VerbalizersError, match="expected those of 2 target layers, got 1"):
        Verbalizers(model, (1, 2)).features(states)
    with pytest.raises(VerbalizersError, match=r"expected those of all positions for kind decoder, got .* response"):
        Verbalizers(model, (1,), "decoder").features(states)
    with pytest.raises(VerbalizersError, match=r"expected those of response tokens for kind mlp, got .* all positions"):
        Verbalizers(model, (1,), "mlp").features(response_states(model, batches(0), (1,), whole=True))
