import json

import pytest
import torch
from torch import nn

from verbdistill import (
    TargetError,
    UnsupportedModelError,
    Verbalizers,
    VerbalizersError,
    load_verbalizers,
    save_verbalizers,
)
from verbdistill.verbalizers.bodies import KINDS
from vlmpress.artifact import ArtifactError, ArtifactFaultError, verify


def test_norm_and_head_are_borrowed(llava, speak):
    model = llava(3)
    verbalizers = Verbalizers(model, (1, 3))
    assert len(verbalizers) == 2
    assert sum(parameter.numel() for parameter in verbalizers.parameters()) == 2 * 3 * 32**2
    assert sorted(verbalizers.state_dict()) == sorted(
        f"bodies.{layer}.blocks.0.{name}.weight" for layer in (1, 3) for name in ("gate", "up", "down")
    )
    states = torch.randn(5, 32, requires_grad=True)
    logits = speak(verbalizers, [states, states])[1]
    ffn = verbalizers.bodies["3"].blocks[0]
    by_hand = ffn.down(torch.sigmoid(ffn.gate(states)) * ffn.gate(states) * ffn.up(states))
    torch.testing.assert_close(logits, model.lm_head(model.model.language_model.norm(by_hand)))
    logits.sum().backward()
    assert states.grad is not None
    assert ffn.gate.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())
    # What the backbone learns, its verbalizers see.
    before = logits.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    torch.testing.assert_close(speak(verbalizers, [states, states])[1], 2 * before)


def test_save_and_load(llava, speak, tmp_path):
    model = llava(3)
    verbalizers = Verbalizers(model, (1, 3))
    artifact = save_verbalizers(verbalizers, tmp_path / "v", [("backbone", "0" * 64)])
    assert artifact.manifest.kind == "verbalizers"
    assert list(artifact.manifest.verbalizers.layers) == [1, 3]
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "config.json",
        "manifest.json",
        "manifest.sha256",
        "verbalizers.safetensors",
    ]
    loaded = load_verbalizers(tmp_path / "v", model)
    states = [torch.randn(4, 32)] * 2
    for one, other in zip(speak(verbalizers, states), speak(loaded, states), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ArtifactError):
        save_verbalizers(verbalizers, tmp_path / "v")
    with pytest.raises(VerbalizersError, match="within 1"):
        load_verbalizers(tmp_path / "v", llava(2))
    with pytest.raises(VerbalizersError, match="expected verbalizers of hidden size 16, got 32"):
        load_verbalizers(tmp_path / "v", llava(3, hidden_size=16))
    weights = tmp_path / "v" / "verbalizers.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactFaultError):
        load_verbalizers(tmp_path / "v", model)
    with pytest.raises(ArtifactError):
        verify(tmp_path / "none")


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_is_kept(llava, tmp_path, kind):
    model = llava(2).to(torch.bfloat16)
    forms = [{"depth": 2}, {"dtype": torch.float32}, {"is_bare": True}]
    if kind == "verb_ffn":
        forms.append({"is_bare": True, "out_size": 48, "depth": 2})
    for number, form in enumerate(forms):
        verbalizers = Verbalizers(model, (1, 2), kind, **form)
        save_verbalizers(verbalizers, tmp_path / str(number))
        state = torch.random.get_rng_state()
        loaded = load_verbalizers(tmp_path / str(number), model)
        assert torch.equal(state, torch.random.get_rng_state())
        for name in ("layers", "kind", "depth", "out_size", "is_bare", "hidden_size"):
            assert getattr(loaded, name) == getattr(verbalizers, name), name
        written = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert (written["kind"], written["depth"]) == (kind, form.get("depth", 1))
        for name, value in verbalizers.state_dict().items():
            assert loaded.state_dict()[name].dtype == value.dtype
            assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_that_do_not_fit_are_named(llava, tmp_path):
    save_verbalizers(Verbalizers(llava(2), (1,), "ffn"), tmp_path / "v")
    narrow = llava(2)
    narrow.config.text_config.intermediate_size = 16
    with pytest.raises(VerbalizersError, match=r"blocks\.0\.down\.weight: expected shape \[32, 16\], got \[32, 64\]"):
        load_verbalizers(tmp_path / "v", narrow)


def test_bad_targets_and_models_are_refused(llava):
    for layers in ((), (0, 1), (2, 1), (1, 1), (3,)):
        with pytest.raises(TargetError):
            Verbalizers(llava(2), layers)
    with pytest.raises(UnsupportedModelError, match="Linear: expected decoder layers in"):
        Verbalizers(nn.Linear(2, 2), (1,))
