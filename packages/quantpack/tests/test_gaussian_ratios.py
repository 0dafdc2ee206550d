"""Compression ratios of Gaussian weights, 2048 x 2048, zstd level 1 (the project's reading notes)."""

import pytest
import torch

from quantpack import QuantizedTensor, Scheme, quantize
from quantpack.frames import compress_frames
from quantpack.nibbles import pack_nibbles, stored_codes

RATIOS = {
    ("group", "plain"): 1.096,
    ("channel", "plain"): 1.222,
    ("tensor", "plain"): 1.511,
    ("group", "recentred"): 1.112,
    ("channel", "recentred"): 1.239,
    ("tensor", "recentred"): 1.511,
    ("group", "symmetric"): 1.174,
    ("channel", "symmetric"): 1.305,
    ("tensor", "symmetric"): 1.592,
}


def compression_ratio(quantized: QuantizedTensor, *, recenter: bool) -> float:
    packed = pack_nibbles(stored_codes(quantized, recenter=recenter))
    frames = compress_frames(packed.numpy().data)
    return packed.numel() / sum(len(frame) for frame in frames)


@pytest.fixture(scope="module")
def gaussian() -> torch.Tensor:
    return torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("granularity", "how"), RATIOS)
def test_ratio(gaussian: torch.Tensor, granularity: str, how: str) -> None:
    scheme = Scheme(granularity=granularity, symmetric=how == "symmetric")  # type: ignore[arg-type]
    ratio = compression_ratio(quantize(gaussian, scheme), recenter=how != "plain")
    # The smallest of 4 M samples sets the tensor-wide scale, so that ratio moves with the seed.
    assert ratio == pytest.approx(RATIOS[granularity, how], rel=0.01)
