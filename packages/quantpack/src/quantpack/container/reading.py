"""Reads the packed weights that `writing` writes."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.container.frames import decompress_frame, decompress_frames
from quantpack.container.index import Entry, decode_index
from quantpack.container.nibbles import codes_from_stored, packed_bytes, unpack_nibbles
from quantpack.container.planes import bytes_as_tensor, join_planes
from quantpack.container.writing import CARRIERS, INDEX
from quantpack.errors import CorruptPackError, WeightError
from quantpack.grouping import Grid


class PackReader:
    """Reads tensors of a packed file one by one; opening it reads and checks header and index only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file: Any = safe_open(path, framework="pt")
            names = set(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise CorruptPackError(f"{path}: expected a safetensors file, got {error}") from error
        if names != {*CARRIERS, INDEX}:
            raise CorruptPackError(f"{path}: expected the six tensors of a pack, got {sorted(names)!r:.200}")
        sizes = {name: self._carrier_bytes(name) for name in names}
        self.index = decode_index(self._file.get_tensor(INDEX).numpy().tobytes(), str(path))
        self._quantized = {entry.name: entry for entry in self.index.quantized}
        self._kept = {entry.name: entry for entry in self.index.kept}
        self._extents = self._lay_out(sizes)

    @property
    def names(self) -> list[str]:
        """Every tensor under its original name, aliases included, sorted."""
        return sorted({*self._quantized, *self._kept, *self.index.aliases})

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor in its source dtype, or a floating one in `dtype`; quantized weights are dequantized.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        name = self.index.aliases.get(name, name)
        if name in self._quantized:
            return dequantize(self.quantized(name), dtype)
        kept = self.kept(name)
        return kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept

    def kept(self, name: str) -> Tensor:
        """A tensor that is stored as it was.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        entry = self._kept[name]
        (frames,) = self._pieces(name)
        content = self._decompress(entry, frames, entry.num_weights * entry.dtype.itemsize)
        return join_planes(content, entry.dtype, entry.shape)

    def quantized(self, name: str) -> QuantizedTensor:
        """Codes, scales and zeros of a quantized tensor.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        entry = self._quantized[name]
        scheme = entry.scheme
        assert scheme is not None
        where = f"{self._path}: tensor {name}"
        frames, scale_bytes, zero_bytes, block_bytes = self._pieces(name)
        packed = self._decompress(entry, frames, packed_bytes(entry.num_weights))
        stored = self._nibbles(name, packed, entry.num_weights, scheme.num_levels).reshape(entry.matrix)
        # Copied: a view of another dtype must start at a multiple of its size.
        scales = scale_bytes.clone().view(entry.dtype)
        if not bool(torch.all(torch.isfinite(scales) & (scales > 0))):
            raise CorruptPackError(f"{where}: expected finite positive scales")
        blocks = None
        if entry.block_bytes:
            blocks = bytes_as_tensor(decompress_frame(block_bytes.numpy().data, entry.num_channels, where))
        try:
            grid = Grid.of(entry.matrix, scheme, blocks, where)
        except WeightError as error:
            raise CorruptPackError(str(error)) from error
        zeros, spread_zeros = None, None
        if not scheme.symmetric:
            zeros = self._nibbles(name, zero_bytes, entry.num_groups, scheme.num_levels)
            spread_zeros = grid.spread(zeros)
        return QuantizedTensor(
            codes=codes_from_stored(stored, spread_zeros, scheme.num_levels),
            scales=scales,
            zeros=zeros,
            channel_blocks=blocks,
            shape=entry.shape,
            scheme=scheme,
        )

    def _carrier_bytes(self, name: str) -> int:
        view = self._file.get_slice(name)
        if view.get_dtype() != "U8" or len(view.get_shape()) != 1:
            raise CorruptPackError(
                f"{self._path}: {name}: expected one row of uint8, got {view.get_dtype()} {view.get_shape()}"
            )
        return int(view.get_shape()[0])

    def _lay_out(self, sizes: dict[str, int]) -> dict[str, list[tuple[str, int, int]]]:
        """(carrier, begin, end) of each stored tensor's bytes; every carrier must be used up exactly."""
        rows = [entry.carrier_bytes() for entry in self.index.quantized]
        columns = [(self.index.quantized, [row[number] for row in rows]) for number in range(4)]
        columns.append((self.index.kept, [sum(entry.frame_bytes) for entry in self.index.kept]))
        extents: dict[str, list[tuple[str, int, int]]] = {name: [] for name in (*self._quantized, *self._kept)}
        for carrier, (entries, lengths) in zip(CARRIERS, columns, strict=True):
            ends = list(accumulate(lengths, initial=0))
            if ends[-1] != sizes[carrier]:
                raise CorruptPackError(
                    f"{self._path}: {carrier}: index says {ends[-1]} bytes, file has {sizes[carrier]}"
                )
            for entry, begin, end in zip(entries, ends[:-1], ends[1:], strict=True):
                extents[entry.name].append((carrier, begin, end))
        return extents

    def _pieces(self, name: str) -> list[Tensor]:
        return [self._file.get_slice(carrier)[begin:end] for carrier, begin, end in self._extents[name]]

    def _decompress(self, entry: Entry, frames: Tensor, num_bytes: int) -> Tensor:
        where = f"{self._path}: tensor {entry.name}"
        content = decompress_frames(frames.numpy().data, entry.frame_bytes, num_bytes, where)
        return bytes_as_tensor(content)

    def _nibbles(self, name: str, packed: Tensor, count: int, num_levels: int) -> Tensor:
        if count % 2 and int(packed[-1]) >> 4:
            raise CorruptPackError(f"{self._path}: tensor {name}: expected the last byte's unused half to be 0")
        values = unpack_nibbles(packed, count)
        if num_levels < 16 and count and int(values.max()) >= num_levels:
            raise CorruptPackError(f"{self._path}: tensor {name}: expected values below {num_levels}")
        return values
