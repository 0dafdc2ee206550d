"""`quantize` on a model in memory."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from quantpack import CalibrationError, Scheme, WeightError, dequantize, quantize_tensor
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.quantizing import quantize, schemes_of
from quantpack.recipe import PartRecipe, Recipe
from quantpack.selection import is_linear_weight, part_of


@pytest.fixture
def model(llava: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    return copy.deepcopy(llava).float()


@pytest.fixture
def samples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(4, 60, (4, 2, 9), generator=generator)
    images = torch.full((2, 64), 3)
    return [
        {
            "input_ids": torch.cat((images, each), 1),
            "pixel_values": torch.randn(2, 3, 64, 64, generator=generator),
            "attention_mask": torch.ones(2, 73, dtype=torch.long),
        }
        for each in text
    ]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def test_a_scheme_rounds_every_linear_layer_to_nearest(model: LlavaForConditionalGeneration) -> None:
    before = weights(model)
    scheme = Scheme(granularity="rows", num_rows=3)
    done: list[tuple[int, int, str]] = []
    found = quantize(model, scheme, on_progress=lambda *step: done.append(step))
    assert found.tensors.keys() == {name for name in before if is_linear_weight(name, tuple(before[name].shape))}
    for name, param in model.named_parameters():
        expected = before[name]
        if name in found.tensors:
            expected = dequantize(quantize_tensor(before[name], scheme))
        assert torch.equal(param, expected), name
    assert [name for *_, name in done] == list(found.tensors)
    assert done[-1][0] == done[-1][1]


@pytest.mark.parametrize(
    "method", [Gptq(), Awq(), Mbq(), Ecm(alpha=0.5), Ecm(alpha=0.3, rounding="gptq")], ids=lambda each: repr(each)
)
def test_calibrated_weights_are_what_their_codes_stand_for(
    model: LlavaForConditionalGeneration, samples: list[dict[str, Any]], method: Any
) -> None:
    recipe = Recipe(default=PartRecipe(scheme=Scheme(granularity="channel"), method=method))
    expected = schemes_of(model, recipe).keys()
    found = quantize(model, recipe, samples)
    assert found.tensors.keys() == expected
    params = dict(model.named_parameters())
    for name, tensor in found.tensors.items():
        assert torch.equal(params[name], dequantize(tensor)), name
    with torch.no_grad():
        assert torch.isfinite(model(**samples[0]).logits).all()


def test_calibration_helps_where_a_method_says_so(
    model: LlavaForConditionalGeneration, samples: list[dict[str, Any]]
) -> None:
    with torch.no_grad():
        wanted = model(**samples[0]).logits
        lost = {}
        for method in (Ecm(), Gptq()):
            copied = copy.deepcopy(model)
            scheme = Scheme(bits=3, granularity="channel")
            quantize(copied, Recipe(default=PartRecipe(scheme=scheme, method=method)), samples)
            lost[type(method)] = float((copied(**samples[0]).logits - wanted).square().mean())
    assert lost[Gptq] < lost[Ecm]


def test_parts_have_their_own_recipe_and_may_stay(
    model: LlavaForConditionalGeneration, samples: list[dict[str, Any]]
) -> None:
    before = weights(model)
    vision = PartRecipe(scheme=Scheme(symmetric=True), method=Ecm(alpha=0.4))
    found = quantize(model, Recipe(parts={"vision": vision, "language": None}), samples)
    assert {part_of(name) for name in found.tensors} == {"vision", "other"}
    for name, tensor in found.tensors.items():
        assert tensor.scheme.symmetric == (part_of(name) == "vision")
    for name, param in model.named_parameters():
        if part_of(name) == "language":
            assert torch.equal(param, before[name])


def test_embeddings_are_quantized_when_asked(model: LlavaForConditionalGeneration) -> None:
    found = quantize(model, Recipe(embeddings="int4"))
    tables = [name for name in found.tensors if name.endswith("embed_tokens.weight")]
    assert len(tables) == 1
    # Tied: the output head is the same parameter.
    assert torch.equal(model.lm_head.weight, dequantize(found.tensors[tables[0]]))


def test_bad_input_is_named(model: LlavaForConditionalGeneration, samples: list[dict[str, Any]]) -> None:
    with pytest.raises(CalibrationError, match="method awq: expected calibration data, got none"):
        quantize(model, Recipe(default=PartRecipe(method=Awq())))
    with pytest.raises(CalibrationError, match="calibration sample 1"):
        quantize(model, Scheme(), [samples[0], {"input_ids": torch.ones(1, 2, 3)}])
    with pytest.raises(WeightError, match="at least one linear layer"):
        quantize(torch.nn.LayerNorm(3), Scheme())
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        dict(model.named_parameters())[name][0, 0] = torch.nan
    with pytest.raises(WeightError, match=f"^{name}: expected finite"):
        quantize(model, Scheme())
