"""Reads the packed weights that `writing` writes."""

import mmap
import zlib
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from quantpack.affine import QuantizedTensor, dequantize
from quantpack.container.decoding import Bytes, FrameSet, default_threads
from quantpack.container.frames import decompress_frame
from quantpack.container.header import read_header
from quantpack.container.index import Entry, decode_index
from quantpack.container.nibbles import packed_bytes, unpack_nibbles
from quantpack.container.packed import PackedTensor, unpack_tensor
from quantpack.container.planes import as_bytes, join_planes
from quantpack.container.writing import CARRIERS, INDEX
from quantpack.errors import CorruptPackError, WeightError
from quantpack.grouping import Grid
from quantpack.scheme import Scheme


class PackReader:
    """Reads tensors of a packed file one by one; opening it reads and checks header and index only.

    The file is mapped, not read: compressed bytes are not copied. Frames of one tensor are decoded by several threads.
    """

    def __init__(self, path: Path, num_threads: int | None = None) -> None:
        """Opens a packed file.

        Args:
            path: The safetensors file.
            num_threads: That decode a tensor together; None: one for each processor, at most 8.

        Raises:
            CorruptPackError: It is no pack, or its index does not fit its size.
        """
        try:
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise CorruptPackError(f"{path}: expected a pack's safetensors file, got {error}") from error
        self._open(data, str(path), num_threads)

    @classmethod
    def over(cls, data: memoryview, where: str, num_threads: int | None = None) -> Self:
        """Reads a packed file that is in memory; `where` stands for its path in errors."""
        reader = cls.__new__(cls)
        reader._open(data, where, num_threads)
        return reader

    def _open(self, data: memoryview, where: str, num_threads: int | None) -> None:
        self._where = where
        self._num_threads = num_threads or default_threads()
        extents = read_header(data, [*CARRIERS, INDEX], where)
        self._carriers = {name: data[extent.begin : extent.end] for name, extent in extents.items()}
        self.index = decode_index(self._carriers.pop(INDEX), where)
        self._quantized = {entry.name: entry for entry in self.index.quantized}
        self._kept = {entry.name: entry for entry in self.index.kept}
        self._extents = self._lay_out()

    @property
    def names(self) -> list[str]:
        """Every tensor under its original name, aliases included, sorted."""
        return sorted({*self._quantized, *self._kept, *self.index.aliases})

    def entry(self, name: str) -> Entry:
        """What the index says of a tensor; of an alias, what it says of the tensor it stands for."""
        name = self.index.aliases.get(name, name)
        return self._quantized[name] if name in self._quantized else self._kept[name]

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
        size = entry.dtype.itemsize
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        target = as_bytes(tensor)

        def put(begin: int, end: int, content: Bytes) -> None:
            join_planes(content, entry.dtype, target[begin * size : end * size])

        self._frames(entry).for_each(put, self._num_threads)
        return tensor

    def quantized(self, name: str) -> QuantizedTensor:
        """Codes, scales and zeros of a quantized tensor.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        return unpack_tensor(self.packed(name), name)

    def packed(self, name: str) -> PackedTensor:
        """A quantized tensor with its codes as they are stored, two a byte.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        entry = self._quantized[name]
        scheme, where = self._scheme(entry), self._place(name)
        # By torch: numpy asks for huge pages, which the system may take longer to find than zstd to decode.
        codes = torch.empty(packed_bytes(entry.num_weights), dtype=torch.uint8)
        self._frames(entry).read_into(codes.numpy(), self._code_check(entry), self._num_threads)
        self._check_end(entry, codes.numpy())
        _, scale_bytes, zero_bytes, block_bytes = self._pieces(name)
        if zlib.crc32(zero_bytes, zlib.crc32(scale_bytes)) != entry.side_crc32:
            raise CorruptPackError(f"{where}: expected scales and zeros with the checksum of the index")
        # Copied: they outlive the mapping, and must start at a multiple of their size.
        scales = torch.from_numpy(np.frombuffer(bytearray(scale_bytes), dtype=np.uint8)).view(entry.dtype)
        if not _are_positive(scales):
            raise CorruptPackError(f"{where}: expected finite positive scales")
        blocks = None
        if entry.block_bytes:
            content = decompress_frame(block_bytes, entry.num_channels, where)
            blocks = torch.from_numpy(np.frombuffer(content, dtype=np.uint8))
            try:
                Grid.of(entry.matrix, scheme, blocks, where)
            except WeightError as error:
                raise CorruptPackError(str(error)) from error
        return PackedTensor(
            codes=codes,
            scales=scales,
            zeros=None if scheme.symmetric else self._zeros(entry, zero_bytes),
            channel_blocks=blocks,
            shape=entry.shape,
            scheme=scheme,
        )

    def frames(self, name: str) -> list[memoryview]:
        """The compressed frames of a tensor's codes, or of a kept tensor."""
        return self._frames(self.entry(name)).frames()

    def code_counts(self, name: str) -> list[int]:
        """How often each of the 16 values occurs among a tensor's codes as stored; no more than frames in memory.

        Raises:
            CorruptPackError: Its codes are not what the index says.
        """
        entry = self._quantized[name]
        check = self._code_check(entry)
        parts: list[Bytes] = []

        def count(begin: int, end: int, content: Bytes) -> None:
            check(content)
            if end == packed_bytes(entry.num_weights):
                self._check_end(entry, content)
            pairs = np.bincount(content, minlength=256).reshape(16, 16)
            parts.append(pairs.sum(0) + pairs.sum(1))

        self._frames(entry).for_each(count, self._num_threads)
        counts: list[int] = np.sum(parts, axis=0).tolist()
        # The last byte's unused half is no code.
        counts[0] -= entry.num_weights % 2
        return counts

    def check(self, name: str) -> None:
        """Decodes a tensor and lets it go.

        Raises:
            CorruptPackError: Its bytes are not what the index says.
        """
        if name in self._quantized:
            self.packed(name)
        elif name in self._kept:
            self._frames(self._kept[name]).for_each(lambda *_: None, self._num_threads)

    def _zeros(self, entry: Entry, data: memoryview) -> Tensor:
        packed = np.frombuffer(bytearray(data), dtype=np.uint8)
        self._code_check(entry)(packed)
        if entry.num_groups % 2 and packed[-1] >> 4:
            raise CorruptPackError(f"{self._place(entry.name)}: expected the last byte's unused half to be 0")
        return unpack_nibbles(torch.from_numpy(packed), entry.num_groups)

    def _code_check(self, entry: Entry) -> Callable[[Bytes], None]:
        """Refuses bytes with a half that is no code of the tensor's scheme."""
        num_levels = self._scheme(entry).num_levels
        where = self._place(entry.name)
        unused = np.uint8(0x11 * (0xF & ~(num_levels - 1)))

        def check(content: Bytes) -> None:
            if unused and bool((content & unused).any()):
                raise CorruptPackError(f"{where}: expected values below {num_levels}")

        return check

    def _check_end(self, entry: Entry, content: Bytes) -> None:
        if entry.num_weights % 2 and content[-1] >> 4:
            raise CorruptPackError(f"{self._place(entry.name)}: expected the last byte's unused half to be 0")

    def _scheme(self, entry: Entry) -> Scheme:
        assert entry.scheme is not None
        return entry.scheme

    def _place(self, name: str) -> str:
        return f"{self._where}: tensor {name}"

    def _lay_out(self) -> dict[str, list[tuple[str, int, int]]]:
        """(carrier, begin, end) of each stored tensor's bytes; every carrier must be used up exactly."""
        rows = [entry.carrier_bytes() for entry in self.index.quantized]
        columns = [(self.index.quantized, [row[number] for row in rows]) for number in range(4)]
        columns.append((self.index.kept, [sum(entry.frame_bytes) for entry in self.index.kept]))
        extents: dict[str, list[tuple[str, int, int]]] = {name: [] for name in (*self._quantized, *self._kept)}
        for carrier, (entries, lengths) in zip(CARRIERS, columns, strict=True):
            ends = list(accumulate(lengths, initial=0))
            if ends[-1] != len(self._carriers[carrier]):
                raise CorruptPackError(
                    f"{self._where}: {carrier}: index says {ends[-1]} bytes, file has {len(self._carriers[carrier])}"
                )
            for entry, begin, end in zip(entries, ends[:-1], ends[1:], strict=True):
                extents[entry.name].append((carrier, begin, end))
        return extents

    def _pieces(self, name: str) -> list[memoryview]:
        return [self._carriers[carrier][begin:end] for carrier, begin, end in self._extents[name]]

    def _frames(self, entry: Entry) -> FrameSet:
        return FrameSet(
            data=self._pieces(entry.name)[0],
            frame_bytes=entry.frame_bytes,
            extents=entry.frame_extents(),
            item_bytes=entry.item_bytes,
            where=self._place(entry.name),
        )


def _are_positive(scales: Tensor) -> bool:
    """Whether all are over 0 and finite: so are those whose bits, as an integer, lie between 0's and infinity's."""
    size = scales.dtype.itemsize
    integers = np.dtype(f"i{size}")
    infinity = torch.tensor([torch.inf], dtype=scales.dtype).view(torch.uint8).numpy().view(integers)[0]
    bits = as_bytes(scales).view(integers)
    return bool(bits.min() > 0 and bits.max() < infinity)
