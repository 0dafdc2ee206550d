import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantpack import QuantizedTensor, Scheme, dequantize, quantize_tensor
from quantpack.calibration.sites import Site, SiteResult
from quantpack.calibration.walk import walk
from quantpack.selection import is_linear_weight

SCHEME = Scheme(granularity="channel")


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    return {name: SCHEME for name, p in model.named_parameters() if is_linear_weight(name, tuple(p.shape))}


class Nearest:
    """Rounds to nearest, after a factor where the site takes one; keeps what it was shown."""

    def __init__(self, *, scaled: bool = False, exact: bool = False) -> None:
        self.scaled, self.exact = scaled, exact
        self.sites: dict[str, Site] = {}
        self.codes: dict[str, QuantizedTensor] = {}

    def __call__(self, site: Site) -> SiteResult:
        first = next(iter(site.weights))
        self.sites[first] = site
        factor = (site.activations.max_abs + 0.1).sqrt() if self.scaled and site.scalable else None
        codes = {}
        for name, weight in site.weights.items():
            scaled = weight.float() if factor is None else weight.float() * factor
            codes[name] = quantize_tensor(scaled.to(weight.dtype), site.schemes[name], name=name)
        self.codes |= codes
        return SiteResult(quantized=codes, factor=factor)


def logits(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    with torch.no_grad():
        out = model(**given)
    if "logits" in out:
        return out.logits
    return torch.cat((out.text_embeds, out.image_embeds))


def test_every_weight_is_visited_and_replaced_by_what_its_codes_say(family: str, tiny: Any) -> None:
    model = tiny.build(family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    visit = Nearest()
    report = walk(model, [tiny.sample(family, seed=s) for s in range(2)], visit, schemes=schemes_of(model))
    # The pooling head's attention reads this weight without running the layer.
    assert set(report.unreached) == ({"vision_model.head.attention.out_proj.weight"} if family == "siglip2" else set())
    assert set(report.visited) | set(report.unreached) == set(schemes_of(model))
    for name, param in model.named_parameters():
        expected = dequantize(visit.codes[name], param.dtype) if name in visit.codes else before[name]
        assert torch.equal(param, expected), name


def test_sites_see_what_the_quantized_layers_before_them_make(family: str, tiny: Any) -> None:
    """Slow reference: the finished model is run, and each layer is put back to how it was when it was visited."""
    original = tiny.build(family)
    model = copy.deepcopy(original)
    samples = [tiny.sample(family, seed=s, num_text=5 + s) for s in range(2)]
    visit = Nearest()
    report = walk(model, samples, visit, schemes=schemes_of(model))
    order = list(visit.sites)
    stacks = (
        "encoder.layers.",
        "encoder.layer.",
        "visual.blocks.",
        "language_model.layers.",
        "text_model.encoder.layers.",
    )

    def layer_of(name: str) -> str:
        stem = next((stem for stem in stacks if stem in name), None)
        return name if stem is None else name[: name.index(stem) + len(stem)] + name.split(stem)[1].split(".")[0] + "."

    finished = dict(model.named_parameters())
    for first in order:
        reference = copy.deepcopy(original)
        reached = {layer_of(name) for name in order[: order.index(first)]} - {layer_of(first)}
        with torch.no_grad():
            for name, param in reference.named_parameters():
                if name in report.visited and layer_of(name) in reached:
                    param.copy_(finished[name])
        seen = inputs_of(reference, first.removesuffix(".weight"), samples)
        activations = visit.sites[first].activations
        assert activations.num_tokens == len(seen)
        torch.testing.assert_close(activations.max_abs, seen.abs().amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(activations.mean_abs, seen.abs().mean(0), rtol=1e-4, atol=1e-5)


def inputs_of(model: nn.Module, name: str, samples: list[dict[str, Any]]) -> Tensor:
    """Tokens [N, I] that a linear layer reads; SigLIP2's padded patches left out."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    for given in samples:
        logits(model, given)
    handle.remove()
    masks = [s.get("pixel_attention_mask") for s in samples] if "vision_model.encoder" in name else [None] * len(seen)
    flat = []
    for tokens, mask in zip(seen, masks, strict=True):
        rows = tokens.reshape(-1, tokens.shape[-1])
        flat.append(rows if mask is None else rows[mask.reshape(-1).bool()])
    return torch.cat(flat)


def test_factors_are_folded(family: str, tiny: Any) -> None:
    """Codes exact enough to be the weights: then scaling must leave the model's output where it was."""
    model = tiny.build(family, torch.float64)
    samples = [tiny.sample(family, dtype=torch.float64)]
    expected = logits(model, samples[0])

    def exact(site: Site) -> SiteResult:
        factor = (site.activations.max_abs.double() + 0.1).sqrt() if site.scalable else None
        quantized = {}
        for name, weight in site.weights.items():
            scaled = weight if factor is None else weight * factor
            quantized[name] = Exact(scaled)
        return SiteResult(quantized=quantized, factor=factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantpack.calibration.applying.dequantize", lambda codes, dtype: codes.weight.to(dtype))
        walk(model, samples, exact, schemes=schemes_of(model))
    torch.testing.assert_close(logits(model, samples[0]), expected, rtol=1e-8, atol=1e-9)


class Exact:
    """Codes that lose nothing."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.shape = weight, tuple(weight.shape)
