import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from quantpack import CalibrationError
from quantpack.calibration.folding import SiteOps, find_sites, fold
from quantpack.selection import is_linear_weight

# Scalable sites of each tiny model: layers times sites, and what is outside the layers.
NUM_SCALABLE = {
    "llava": 3 * 3 + 2 * 4,
    "llava_onevision": 3 * 3 + 2 * 3,
    "qwen2_vl": 3 * 3 + 2 * 3,
    "qwen2_5_vl": 3 * 4 + 2 * 3,
    "internvl": 3 * 3 + 1 + 2 * 3,
    "siglip2": 3 * 3 + 1 + 2 * 3,
}


def outputs(model: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out = model(**given)
    return torch.cat(
        [out.logits.flatten()] if "logits" in out else [out.text_embeds.flatten(), out.image_embeds.flatten()]
    )


def test_folding_at_every_site_changes_nothing(family: str, tiny: Any) -> None:
    model = tiny.build(family, torch.float64)
    given = tiny.sample(family, dtype=torch.float64)
    expected = outputs(model, given)
    generator = torch.Generator().manual_seed(5)
    scalable = [ops for ops in find_sites(model) if ops.before is not None]
    for ops in scalable:
        linears = list(ops.linears.values())
        factor = torch.exp(torch.randn(linears[0].in_features, generator=generator, dtype=torch.float64))
        before = [linear.weight.detach().clone() for linear in linears]
        fold(ops, factor)
        with torch.no_grad():
            for linear, weight in zip(linears, before, strict=True):
                assert torch.equal(linear.weight, weight), "folding must leave the readers to the caller"
                linear.weight.mul_(factor)
    assert len(scalable) == NUM_SCALABLE[family]
    torch.testing.assert_close(outputs(model, given), expected, rtol=1e-9, atol=1e-10)


def test_folding_without_the_readers_changes_the_output_at_each_site(family: str, tiny: Any) -> None:
    """Else the test above would pass on sites that nothing comes from."""
    model = tiny.build(family, torch.float64)
    given = tiny.sample(family, dtype=torch.float64)
    expected = outputs(model, given)
    for ops in find_sites(model):
        # LLaVA reads the tower's last layer but one.
        if ops.before is not None and not (family == "llava" and "vision_tower.encoder.layers.2" in ops.before.name):
            factor = torch.full((next(iter(ops.linears.values())).in_features,), 4.0)
            fold(ops, factor)
            assert not torch.allclose(outputs(model, given), expected, rtol=1e-9, atol=1e-12), ops.before.name
            fold(ops, 1 / factor)


def test_every_linear_weight_is_in_one_site(family: str, tiny: Any) -> None:
    model = tiny.build(family)
    names = [f"{name}.weight" for ops in find_sites(model) for name in ops.linears]
    assert len(names) == len(set(names))
    accepted = {name for name, param in model.named_parameters() if is_linear_weight(name, tuple(param.shape))}
    assert accepted <= set(names)
    assert len(accepted) > 20


def test_grouped_values_take_no_factor(tiny: Any) -> None:
    (o_proj,) = [
        ops
        for ops in find_sites(tiny.build("llava_onevision"))
        if next(iter(ops.linears)).endswith("0.self_attn.o_proj")
    ]
    assert o_proj.before is None


def test_prefix_stands_before_every_name() -> None:
    layer = LlamaDecoderLayer(LlamaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12), layer_idx=0)
    sites = find_sites(layer, "model.layers.3.")
    assert [list(ops.linears) for ops in sites] == [
        [f"model.layers.3.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")],
        ["model.layers.3.self_attn.o_proj"],
        ["model.layers.3.mlp.gate_proj", "model.layers.3.mlp.up_proj"],
        ["model.layers.3.mlp.down_proj"],
    ]
    assert [ops.before and ops.before.name for ops in sites] == [
        "model.layers.3.input_layernorm",
        "model.layers.3.self_attn.v_proj",
        "model.layers.3.post_attention_layernorm",
        "model.layers.3.mlp.up_proj",
    ]


def test_ungated_mlp_and_unknown_names_take_no_factor() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up_proj, self.down_proj, self.other = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4)

    assert [(list(ops.linears), ops.before) for ops in find_sites(Plain())] == [
        (["up_proj"], None),
        (["down_proj"], None),
        (["other"], None),
    ]


def test_norms_that_add_one_to_their_weight_take_no_factor() -> None:
    layer = LlamaDecoderLayer(LlamaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12), layer_idx=0)
    layer.input_layernorm = GemmaRMSNorm(8)
    assert [ops.before is not None for ops in find_sites(layer)] == [False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fold_keeps_the_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    holder = nn.Module()
    holder.layer_norm, holder.linear_1 = nn.LayerNorm(7, dtype=dtype), nn.Linear(7, 3, dtype=dtype)
    nn.init.normal_(holder.layer_norm.weight)
    nn.init.normal_(holder.layer_norm.bias)
    weight, bias = holder.layer_norm.weight.detach().clone(), holder.layer_norm.bias.detach().clone()
    factor = torch.rand(7) + 0.3
    (ops,) = find_sites(holder)
    fold(ops, factor)
    assert torch.equal(holder.layer_norm.weight, (weight.float() / factor).to(dtype))
    assert torch.equal(holder.layer_norm.bias, (bias.float() / factor).to(dtype))


@pytest.mark.parametrize("factor", [torch.ones(31), torch.zeros(32), -torch.ones(32), torch.full((32,), math.nan)])
def test_bad_factors_are_refused(factor: Tensor, tiny: Any) -> None:
    model = tiny.build("llava")
    ops = next(
        ops for ops in find_sites(model) if next(iter(ops.linears)).endswith("language_model.layers.0.self_attn.q_proj")
    )
    with pytest.raises(CalibrationError, match=r"layers\.0\.self_attn\.q_proj: expected a factor of 32 positive"):
        fold(ops, factor)


def test_a_site_without_an_op_before_is_refused() -> None:
    ops = SiteOps(linears={"alone": nn.Linear(3, 2)}, before=None)
    with pytest.raises(CalibrationError, match="alone: expected a site with an op before"):
        fold(ops, torch.ones(3))


def test_own_norms_are_tried_not_trusted_by_name() -> None:
    class Squared(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return super().forward(hidden_states) * self.weight

    layer = LlamaDecoderLayer(LlamaConfig(hidden_size=8, num_attention_heads=2, intermediate_size=12), layer_idx=0)
    layer.post_attention_layernorm = Squared(8)
    assert [ops.before is not None for ops in find_sites(layer)] == [True, True, False, True]
