import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quantpack import ModelMismatchError, QuantizedTensor, Scheme, dequantize, quantize_tensor
from quantpack.calibration.sites import Site, SiteResult
from quantpack.calibration.streaming import StreamedModel, build_empty
from quantpack.calibration.walk import walk
from quantpack.selection import is_linear_weight


class Values:
    """A model's tensors, and what has become of them."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors: dict[str, Tensor | QuantizedTensor] = dict(model.state_dict())
        self.reads: list[str] = []

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        value = self.tensors[name]
        return value.clone() if isinstance(value, Tensor) else dequantize(value)

    def store(self, name: str, value: Tensor | QuantizedTensor) -> None:
        self.tensors[name] = value


def streamed(model: PreTrainedModel) -> tuple[StreamedModel, Values]:
    values = Values(model)
    return StreamedModel(build_empty(type(model), copy.deepcopy(model.config), torch.float32), values.read), values


def visit(site: Site) -> SiteResult:
    factor = (site.activations.max_abs + 0.1).sqrt() if site.scalable else None
    codes = {}
    for name, weight in site.weights.items():
        codes[name] = quantize_tensor(weight if factor is None else weight * factor, site.schemes[name], name=name)
    return SiteResult(quantized=codes, factor=factor)


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    scheme = Scheme(granularity="channel")
    return {name: scheme for name, p in model.named_parameters() if is_linear_weight(name, tuple(p.shape))}


def output(model: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out = model(**given)
    return out.logits if "logits" in out else torch.cat((out.text_embeds, out.image_embeds))


def test_a_streamed_model_is_the_model(family: str, tiny: Any) -> None:
    # As streamed parameters are: torch's attention pooling takes another path for those with gradients.
    model = tiny.build(family).requires_grad_(False)
    stream, _ = streamed(model)
    given = tiny.sample(family)
    assert torch.equal(output(stream.model, given), output(model, given))
    assert stream.num_bytes_held() == 0
    assert all(param.is_meta for param in stream.model.parameters())
    stream.close()
    assert not any("forward" in module.__dict__ for module in stream.model.modules())


def test_a_streamed_walk_is_the_walk(family: str, tiny: Any) -> None:
    model = tiny.build(family).requires_grad_(False)
    stream, values = streamed(model)
    samples = [tiny.sample(family, seed=s) for s in range(2)]
    schemes = schemes_of(model)
    peak = 0

    def watched(site: Site) -> SiteResult:
        nonlocal peak
        peak = max(peak, stream.num_bytes_held())
        return visit(site)

    report = walk(stream.model, samples, watched, schemes=schemes, hold=stream.hold, store=values.store)
    assert report == walk(model, samples, visit, schemes=schemes)
    for name, param in model.named_parameters():
        assert torch.equal(values.read(name), param), name
    # What was stored makes the streamed model the quantized one.
    assert torch.equal(output(stream.model, samples[0]), output(model, samples[0]))
    assert peak < sum(p.numel() * 4 for p in model.parameters()) / 2
    assert stream.num_bytes_held() == 0


def test_a_layer_is_read_twice_however_many_samples_there_are(tiny: Any) -> None:
    """Once for its form if it is the first of its stack, once for all of its passes."""
    model = tiny.build("llava")
    stream, values = streamed(model)
    samples = [tiny.sample("llava", seed=s) for s in range(4)]
    walk(stream.model, samples, visit, schemes=schemes_of(model), hold=stream.hold, store=values.store)
    reads = {name: values.reads.count(name) for name in values.tensors}
    assert reads["model.language_model.layers.0.mlp.up_proj.weight"] == 2
    assert reads["model.language_model.layers.1.mlp.up_proj.weight"] == 1
    assert reads["model.vision_tower.encoder.layers.1.mlp.fc1.weight"] == 1


def test_nothing_stays_loaded_after_an_error(tiny: Any) -> None:
    model = tiny.build("llava")
    stream, _ = streamed(model)

    def fail(site: Site) -> SiteResult:
        raise KeyError("visit")

    with pytest.raises(KeyError, match="visit"):
        walk(stream.model, [tiny.sample("llava")], fail, schemes=schemes_of(model), hold=stream.hold)
    assert stream.num_bytes_held() == 0


def test_values_of_another_shape_are_refused(tiny: Any) -> None:
    stream = StreamedModel(
        build_empty(type(tiny.build("llava")), tiny.build("llava").config, torch.float32), lambda name: torch.zeros(3)
    )
    with pytest.raises(ModelMismatchError, match=r"embed_tokens\.weight: expected \[60, 32\], got \[3\]"):
        stream.model(**tiny.text_only())


def test_buffers_are_real(family: str, tiny: Any) -> None:
    model = tiny.build(family)
    empty = build_empty(type(model), copy.deepcopy(model.config), torch.bfloat16)
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(empty.named_buffers())[name], buffer), name
    assert {param.dtype for param in empty.parameters()} == {torch.bfloat16}
