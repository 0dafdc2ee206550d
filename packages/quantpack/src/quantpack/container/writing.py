"""Writes the packed weights: one safetensors file of six uint8 tensors.

Frames, scales, zeros and channel blocks of the quantized tensors, frames of the kept ones, each one after the other
in the order of the index, and the index. A header entry for each tensor would cost more than a
small tensor's scales.
"""

import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor
from quantpack.container.frames import compress_frame, compress_pieces, frame_extents
from quantpack.container.header import encode_header
from quantpack.container.index import Entry, Index, encode_index
from quantpack.container.names import name_fault
from quantpack.container.nibbles import pack_nibbles
from quantpack.container.packed import PackedTensor, pack_tensor
from quantpack.container.planes import as_bytes, split_planes
from quantpack.errors import WeightError
from quantpack.scheme import Scheme

INDEX = "quantpack.index"
CARRIERS = ("quantpack.codes", "quantpack.scales", "quantpack.zeros", "quantpack.blocks", "quantpack.kept")
_COPY_BYTES = 1 << 20


class PackWriter:
    """Compresses tensors into temporary files, one for each carrier; `write` puts them together.

    No more than a frame of compressed bytes is in memory at a time.
    """

    def __init__(self, scheme: Scheme, folder: Path | None = None) -> None:
        """An empty pack.

        Args:
            scheme: What was asked for; a tensor may have a scheme of its own.
            folder: Has room for the pack; None: the system's folder for temporary files. The files have no
                names there, and are gone when this is, however the process ends.
        """
        self.scheme = scheme
        self._folder = folder
        self._quantized: list[Entry] = []
        self._kept: list[Entry] = []
        self._aliases: dict[str, str] = {}
        self._carriers: dict[str, IO[bytes]] = {}
        self._names: set[str] = set()
        self._files = ExitStack()
        weakref.finalize(self, self._files.close)

    @property
    def index(self) -> Index:
        """What has been added so far."""
        return Index(
            scheme=self.scheme, quantized=tuple(self._quantized), kept=tuple(self._kept), aliases=dict(self._aliases)
        )

    @property
    def names(self) -> frozenset[str]:
        """Names that are taken, those of aliases too."""
        return frozenset(self._names)

    def add_quantized(self, name: str, quantized: QuantizedTensor) -> None:
        """Adds a tensor's codes, scales and zeros.

        Raises:
            WeightError: The name is taken, or none that a pack can hold.
        """
        self.add_packed(name, pack_tensor(quantized))

    def add_packed(self, name: str, packed: PackedTensor) -> None:
        """Adds codes that are packed already; raises as `add_quantized`."""
        self._take(name)
        codes = packed.codes.numpy().data
        frame_bytes = self._spool(CARRIERS[0], (compress_frame(codes[b:e]) for b, e in frame_extents(len(codes))))
        scales = packed.scales.contiguous().view(torch.uint8).numpy().data
        zeros = b"" if packed.zeros is None else pack_nibbles(packed.zeros).numpy().data
        self._spool(CARRIERS[1], [scales])
        self._spool(CARRIERS[2], [zeros])
        block_bytes = 0
        if packed.channel_blocks is not None:
            (block_bytes,) = self._spool(CARRIERS[3], [compress_frame(packed.channel_blocks.numpy().data)])
        self._quantized.append(
            Entry(
                name=name,
                dtype=packed.scales.dtype,
                shape=packed.shape,
                frame_bytes=tuple(frame_bytes),
                scheme=packed.scheme,
                block_bytes=block_bytes,
                side_crc32=zlib.crc32(zeros, zlib.crc32(scales)),
            )
        )

    def add_kept(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor bit for bit; raises as `add_quantized`."""
        self._take(name)
        size = tensor.element_size()
        data = as_bytes(tensor)
        frames = (
            compress_pieces(split_planes(data[begin * size : end * size], tensor.dtype), (end - begin) * size)
            for begin, end in frame_extents(tensor.numel(), size)
        )
        frame_bytes = tuple(self._spool(CARRIERS[4], frames))
        self._kept.append(Entry(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), frame_bytes=frame_bytes))

    def add_alias(self, name: str, target: str) -> None:
        """Adds another name of a tensor that was added before; raises as `add_quantized`."""
        self._take(name)
        self._aliases[name] = target

    def write(self, path: Path) -> None:
        """Writes the safetensors file.

        Raises:
            OSError: It cannot be written, for example because the disk is full.
        """
        index = encode_index(self.index)
        sizes = {name: self._carriers[name].tell() if name in self._carriers else 0 for name in CARRIERS}
        rows = [*sizes.items(), (INDEX, len(index))]
        with path.open("wb") as file:
            file.write(encode_header((name, "U8", [size], size) for name, size in rows))
            for name in CARRIERS:
                if name in self._carriers:
                    self._carriers[name].seek(0)
                    shutil.copyfileobj(self._carriers[name], file, _COPY_BYTES)
            file.write(index)

    def _take(self, name: str) -> None:
        fault = name_fault(name)
        if fault is not None:
            raise WeightError(f"tensor {name!r:.80}: {fault}")
        if name in self._names:
            raise WeightError(f"tensor {name}: expected every name once")
        self._names.add(name)

    def _spool(self, carrier: str, pieces: Iterable[bytes | memoryview]) -> list[int]:
        """Appends to a carrier's file; gives the bytes of each piece."""
        if carrier not in self._carriers:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open until the writer is gone
            self._carriers[carrier] = self._files.enter_context(file)
        return [self._carriers[carrier].write(piece) for piece in pieces]
