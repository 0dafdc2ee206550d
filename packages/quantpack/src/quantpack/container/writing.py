"""Writes the packed weights: one safetensors file of six uint8 tensors.

Frames, scales, zeros and channel blocks of the quantized tensors, frames of the kept ones, each one after the other
in the order of the index, and the index. A header entry for each tensor would cost more than a
small tensor's scales.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor
from quantpack.container.frames import compress_frame, compress_frames
from quantpack.container.index import Entry, Index, encode_index
from quantpack.container.nibbles import pack_nibbles, stored_codes
from quantpack.container.planes import bytes_as_tensor, split_planes
from quantpack.container.saving import save_tensors
from quantpack.scheme import Scheme

INDEX = "quantpack.index"
CARRIERS = ("quantpack.codes", "quantpack.scales", "quantpack.zeros", "quantpack.blocks", "quantpack.kept")


@dataclass(slots=True)
class PackWriter:
    """Collects tensors in compressed form; `write` makes the file."""

    scheme: Scheme
    _quantized: list[Entry] = field(default_factory=list)
    _kept: list[Entry] = field(default_factory=list)
    _aliases: dict[str, str] = field(default_factory=dict)
    _carriers: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in CARRIERS})

    @property
    def index(self) -> Index:
        """What has been added so far."""
        return Index(
            scheme=self.scheme, quantized=tuple(self._quantized), kept=tuple(self._kept), aliases=dict(self._aliases)
        )

    def add_quantized(self, name: str, quantized: QuantizedTensor) -> None:
        """Adds a tensor's codes, scales and zeros."""
        frames = compress_frames(pack_nibbles(stored_codes(quantized)).numpy().data)
        zeros = b"" if quantized.zeros is None else pack_nibbles(quantized.zeros).numpy().tobytes()
        scales = quantized.scales.contiguous().view(torch.uint8).numpy().tobytes()
        blocks = b"" if quantized.channel_blocks is None else compress_frame(quantized.channel_blocks.numpy().data)
        for carrier, piece in zip(CARRIERS[:4], (b"".join(frames), scales, zeros, blocks), strict=True):
            self._carriers[carrier].append(piece)
        entry = _entry(name, quantized.scales.dtype, quantized.shape, frames)
        self._quantized.append(replace(entry, scheme=quantized.scheme, block_bytes=len(blocks)))

    def add_kept(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor bit for bit."""
        frames = compress_frames(split_planes(tensor).numpy().data)
        self._carriers[CARRIERS[4]].append(b"".join(frames))
        self._kept.append(_entry(name, tensor.dtype, tuple(tensor.shape), frames))

    def add_alias(self, name: str, target: str) -> None:
        """Adds another name of a tensor that was added before."""
        self._aliases[name] = target

    def write(self, path: Path) -> None:
        """Writes the safetensors file."""
        tensors = {name: bytes_as_tensor(b"".join(pieces)) for name, pieces in self._carriers.items()}
        tensors[INDEX] = bytes_as_tensor(encode_index(self.index))
        save_tensors(tensors, path)


def _entry(name: str, dtype: torch.dtype, shape: tuple[int, ...], frames: list[bytes]) -> Entry:
    return Entry(name=name, dtype=dtype, shape=shape, frame_bytes=tuple(len(frame) for frame in frames))
