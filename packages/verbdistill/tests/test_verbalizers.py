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
from vlmpress.artifact import ArtifactError, ArtifactFaultError, verify


def test_norm_and_head_are_borrowed(llava):
    model = llava(3)
    verbalizers = Verbalizers(model, (1, 3))
    assert len(verbalizers) == 2
    assert sum(parameter.numel() for parameter in verbalizers.parameters()) == 2 * 3 * 32**2
    assert sorted(verbalizers.state_dict()) == sorted(
        f"bodies.{layer}.blocks.0.{name}.weight" for layer in (1, 3) for name in ("gate", "up", "down")
    )
    states = torch.randn(5, 32, requires_grad=True)
    logits = verbalizers([states, states])[1]
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
    torch.testing.assert_close(verbalizers([states, states])[1], 2 * before)


@pytest.mark.parametrize("rms", [0.1, 1.0, 100.0])
def test_fresh_verbalizers_are_stable(llava, rms):
    """Logits do not depend on the states' scale much, and gradients stay small, from embeddings to huge activations."""
    verbalizers = Verbalizers(llava(2), (1, 2), generator=torch.Generator().manual_seed(0))
    states = rms * torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    logits = verbalizers([states, states])[0]
    nn.functional.cross_entropy(logits, torch.arange(64) % 12).backward()
    norms = [parameter.grad.norm() for parameter in verbalizers.bodies["1"].parameters()]
    assert 0.01 < logits.std() < 10
    assert all(norm < 1 for norm in norms), norms


def test_initialisation_is_seeded(llava):
    first, second, third = (Verbalizers(llava(2), (1,), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    weights = [v.bodies["1"].blocks[0].up.weight for v in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_save_and_load(llava, tmp_path):
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
    for one, other in zip(verbalizers(states), loaded(states), strict=True):
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


def test_bad_targets_and_models_are_refused(llava):
    for layers in ((), (0, 1), (2, 1), (1, 1), (3,)):
        with pytest.raises(TargetError):
            Verbalizers(llava(2), layers)
    with pytest.raises(UnsupportedModelError, match="Linear: expected decoder layers in"):
        Verbalizers(nn.Linear(2, 2), (1,))
