from typing import Any

import pytest
import torch
from torch import nn

from quantpack import CalibrationError
from quantpack.calibration.gradients import visual_weights
from quantpack.calibration.streaming import build_empty
from quantpack.selection import is_linear_weight


def weights_of(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if is_linear_weight(name, tuple(p.shape))]


@pytest.mark.parametrize("with_labels", [True, False])
def test_ratio_is_that_of_the_gradients(tiny: Any, with_labels: bool) -> None:
    """Slow reference: gradients of whole outputs, kept by autograd, split by hand."""
    model = tiny.build("llava_onevision")
    samples = [tiny.sample("llava_onevision", num_text=5 + s, seed=s) for s in range(2)]
    for given in samples:
        labels = torch.where(given["input_ids"] == tiny.IMAGE, -100, given["input_ids"])
        if with_labels:
            labels[:, :-2] = -100
            given["labels"] = labels
    found = visual_weights(model, samples, weights_of(model))
    layer = model.model.language_model.layers[1]
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    absolute: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for given in samples:
        kept: dict[str, torch.Tensor] = {}
        handles = [
            layer.get_submodule(name).register_forward_hook(
                lambda _m, _a, out, name=name, kept=kept: kept.update({name: out})
            )
            for name in names
        ]
        is_visual = given["input_ids"][0] == tiny.IMAGE
        labels = given.get("labels", torch.where(is_visual, -100, given["input_ids"]))
        loss = model(**{**given, "labels": labels}).loss
        for gradient in torch.autograd.grad(loss, [kept[name] for name in names]):
            for visual in (True, False):
                absolute[visual].append(gradient[0, is_visual == visual].abs().flatten())
        for handle in handles:
            handle.remove()
    expected = float(torch.cat(absolute[True]).mean() / torch.cat(absolute[False]).mean())
    stem = "model.language_model.layers.1."
    assert found[f"{stem}self_attn.q_proj.weight"] == pytest.approx(expected, rel=1e-4)
    assert found[f"{stem}self_attn.q_proj.weight"] == found[f"{stem}self_attn.v_proj.weight"]


def test_every_weight_has_one_and_the_tower_has_1(family: str, tiny: Any) -> None:
    if family == "siglip2":
        pytest.skip("no language modeling loss")
    model = tiny.build(family)
    found = visual_weights(model, [tiny.sample(family)], weights_of(model))
    assert found.keys() == set(weights_of(model))
    for name, ratio in found.items():
        # The last layer's queries and MLP at visual tokens do not matter for the loss on text tokens.
        assert 0 < ratio < 100
        assert ratio == 1 or "language_model" in name
    assert found["model.language_model.layers.0.mlp.down_proj.weight"] != 1


def test_the_model_is_left_as_it_was(tiny: Any) -> None:
    model = tiny.build("llava").train()
    frozen = model.model.vision_tower.post_layernorm.weight.requires_grad_(False)
    visual_weights(model, [tiny.sample("llava")], weights_of(model))
    assert model.training
    assert not frozen.requires_grad
    assert model.lm_head.weight.requires_grad
    assert all(param.grad is None for param in model.parameters())
    assert not any(module._forward_hooks for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding))


def test_text_only_samples_weigh_nothing(tiny: Any) -> None:
    model = tiny.build("llava")
    assert set(visual_weights(model, [tiny.text_only()], weights_of(model)).values()) == {1.0}


def test_bad_models_and_samples_are_refused(tiny: Any) -> None:
    model = tiny.build("llava")
    empty = build_empty(type(model), model.config, torch.float32)
    with pytest.raises(CalibrationError, match="expected all weights in memory"):
        visual_weights(empty, [tiny.text_only()], weights_of(model))
    with pytest.raises(CalibrationError, match="input embeddings"):
        visual_weights(nn.Linear(2, 2), [tiny.text_only()], ["weight"])
    with pytest.raises(CalibrationError, match="calibration sample 1: expected"):
        visual_weights(model, [tiny.text_only(), {"input_ids": torch.tensor([[999]])}], weights_of(model))
    with pytest.raises(CalibrationError, match="calibration sample 0: expected labels or input_ids"):
        visual_weights(model, [{"pixel_values": torch.zeros(1, 3, 16, 16)}], weights_of(model))
