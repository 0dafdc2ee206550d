"""Trained weights nobody here trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quantpack import Scheme, inspect, pack, read_tensors, verify

WEIGHTS = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "weights"
FILES = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.mark.skipif(not FILES, reason="no trained weights here")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("symmetric", [False, True])
def test_round_trip(path: Path, tmp_path: Path, symmetric: bool) -> None:
    source = load_file(path)
    pack(path, tmp_path / "pack", Scheme(symmetric=symmetric))
    verify(tmp_path / "pack")
    restored = read_tensors(tmp_path / "pack")
    assert restored.keys() == source.keys()
    for name, tensor in source.items():
        if tensor.dim() != 2:
            assert torch.equal(restored[name], tensor)
        else:
            assert (restored[name] - tensor).norm() <= 0.2 * tensor.norm() + 1e-12, name
    total = inspect(tmp_path / "pack")[-1]
    assert total.num_weights == sum(tensor.numel() for tensor in source.values() if tensor.dim() == 2)
    assert total.cr_codes > 1.0
