"""The index of a pack: what is stored and how, as compressed JSON inside the safetensors file.

Only what nothing else tells is written down. Offsets are sums of sizes, so extents cannot overlap;
the numbers of frames, scales and zeros follow from a tensor's shape and the scheme.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
import zstandard

from quantpack.affine import SCALE_DTYPES
from quantpack.container.frames import MAX_RATIO, decompress_frame, frame_extents, longest_frame, num_frames
from quantpack.container.header import one_line, unique_fields
from quantpack.container.names import name_fault
from quantpack.container.nibbles import packed_bytes
from quantpack.container.planes import DTYPE_NAMES, DTYPES
from quantpack.errors import CorruptPackError, SchemeError, WeightError
from quantpack.grouping import num_groups
from quantpack.scheme import Scheme, scheme_from_fields

VERSION = 4
# 100,000 tensors take about 10 MB.
_MAX_INDEX_BYTES = 64 * 1024 * 1024
# JSON of 100,000 tensors with numbers for names shrinks to a hundredth; what claims far more is a bomb.
_MAX_INDEX_RATIO = 1024
_MIN_INDEX_BYTES = 1 << 20
# Longer text would take seconds, for a percent.
_MAX_THOROUGH_BYTES = 1 << 20
_MAX_SIZE = 1 << 48
_MAX_DIMENSIONS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One stored tensor.

    Attributes:
        name: Its name in the source.
        dtype: Its source dtype.
        shape: Its source shape.
        frame_bytes: Compressed bytes of each frame.
        scheme: How a quantized tensor was quantized; None for a kept one.
        block_bytes: Compressed bytes of the block of each channel; 0 where the scheme has one block.
        side_crc32: Of a quantized tensor's scales and zeros, which are in no frame.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    frame_bytes: tuple[int, ...]
    scheme: Scheme | None = None
    block_bytes: int = 0
    side_crc32: int = 0

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of a quantized tensor as [rows, columns]."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def num_weights(self) -> int:
        """Elements of the tensor; of a quantized one, its codes."""
        return math.prod(self.shape)

    @property
    def item_bytes(self) -> int:
        """What a frame holds a whole number of: bytes of packed codes, or elements."""
        return 1 if self.scheme else self.dtype.itemsize

    @property
    def num_items(self) -> int:
        """Items of all frames together."""
        return packed_bytes(self.num_weights) if self.scheme else self.num_weights

    def frame_extents(self) -> list[tuple[int, int]]:
        """(begin, end) of each frame's items."""
        return frame_extents(self.num_items, self.item_bytes)

    @property
    def num_groups(self) -> int:
        """Groups of a quantized tensor, each with a scale and, unless symmetric, a zero."""
        assert self.scheme is not None
        return num_groups(*self.matrix, self.scheme)

    @property
    def num_channels(self) -> int:
        """Channels of a quantized tensor: rows or columns, as its scheme says."""
        assert self.scheme is not None
        return self.matrix[0 if self.scheme.axis == "out" else 1]

    def carrier_bytes(self) -> tuple[int, int, int, int]:
        """Bytes of a quantized tensor's frames, scales, zeros and channel blocks in the pack."""
        assert self.scheme is not None
        groups = self.num_groups
        zeros = 0 if self.scheme.symmetric else packed_bytes(groups)
        return sum(self.frame_bytes), groups * self.dtype.itemsize, zeros, self.block_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """What a pack stores, in the order of its bytes.

    Attributes:
        scheme: What was asked for; a tensor may have a scheme of its own.
        quantized: Tensors stored as codes.
        kept: Tensors stored as they were.
        aliases: Names of tensors equal to one that is stored under another name.
    """

    scheme: Scheme
    quantized: tuple[Entry, ...]
    kept: tuple[Entry, ...]
    aliases: Mapping[str, str]


def encode_index(index: Index) -> bytes:
    """The index as one zstd frame of compact JSON; schemes are written once and numbered.

    Raises:
        WeightError: There are more tensors than an index can hold.
    """
    numbers = {index.scheme: 0}
    for entry in index.quantized:
        assert entry.scheme is not None
        numbers.setdefault(entry.scheme, len(numbers))
    fields = {
        "version": VERSION,
        "schemes": [scheme.as_fields() for scheme in numbers],
        "quantized": [
            [*_row(entry), numbers[entry.scheme], entry.block_bytes, entry.side_crc32]
            for entry in index.quantized
            if entry.scheme
        ],
        "kept": [_row(entry) for entry in index.kept],
        "aliases": dict(index.aliases),
    }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > _MAX_INDEX_BYTES:
        raise WeightError(f"index: expected at most {_MAX_INDEX_BYTES} bytes, got {len(text)}: too many tensors")
    level = 19 if len(text) <= _MAX_THOROUGH_BYTES else 9
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True).compress(text)


def decode_index(data: memoryview | bytes, where: str) -> Index:
    """Undoes `encode_index`; every field is checked.

    Raises:
        CorruptPackError: Names `where` and what is wrong.
    """
    try:
        size = zstandard.get_frame_parameters(data).content_size
        most = min(_MAX_INDEX_BYTES, max(_MIN_INDEX_BYTES, _MAX_INDEX_RATIO * len(data)))
        if size > most:
            raise CorruptPackError(f"{where}: expected an index of at most {most} bytes, got {size}")
        fields = json.loads(decompress_frame(data, size, where), object_pairs_hook=unique_fields)
        if fields["version"] != VERSION:
            raise CorruptPackError(f"{where}: expected version {VERSION}, got {fields['version']!r:.40}")
        schemes = [scheme_from_fields(scheme, where) for scheme in fields["schemes"]]
        index = Index(
            scheme=schemes[0],
            quantized=tuple(_quantized_entry(row, schemes, where) for row in fields["quantized"]),
            kept=tuple(_kept_entry(row, where) for row in fields["kept"]),
            aliases=fields["aliases"],
        )
    except CorruptPackError:
        raise
    except (zstandard.ZstdError, SchemeError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptPackError(f"{where}: expected a pack's index, got {one_line(error)}") from error
    _check_names(index, where)
    return index


def _check_names(index: Index, where: str) -> None:
    if not isinstance(index.aliases, dict):
        raise CorruptPackError(f"{where}: expected aliases by name, got {type(index.aliases).__name__}")
    stored = [entry.name for entry in (*index.quantized, *index.kept)]
    names = {*stored, *index.aliases}
    for alias in index.aliases:
        _check_name(alias, where)
    if len(names) != len(stored) + len(index.aliases):
        twice = next(name for name, count in Counter([*stored, *index.aliases]).items() if count > 1)
        raise CorruptPackError(f"{where}: tensor {twice}: expected once, quantized, kept or as an alias")
    targets = set(stored)
    for alias, target in index.aliases.items():
        if not isinstance(target, str) or target not in targets:
            raise CorruptPackError(f"{where}: alias {alias} names {target!r:.80}, which is not stored")


def _row(entry: Entry) -> list[object]:
    return [entry.name, DTYPE_NAMES[entry.dtype], list(entry.shape), list(entry.frame_bytes)]


def _quantized_entry(row: object, schemes: list[Scheme], where: str) -> Entry:
    if not isinstance(row, list) or len(row) != 7:
        raise CorruptPackError(f"{where}: expected seven fields of a quantized tensor, got {row!r:.80}")
    entry = _entry(row[:4], where)
    if entry.dtype not in SCALE_DTYPES or len(entry.shape) < 2 or not all(entry.shape):
        raise CorruptPackError(
            f"{where}: tensor {entry.name}: cannot be quantized as {entry.dtype} {list(entry.shape)}"
        )
    if not _are_sizes(row[4:]) or row[4] >= len(schemes):
        raise CorruptPackError(f"{where}: tensor {entry.name}: expected one of {len(schemes)} schemes, got {row[4:]!r}")
    entry = replace(entry, scheme=schemes[row[4]], block_bytes=row[5], side_crc32=row[6])
    if bool(entry.block_bytes) != (len(schemes[row[4]].layout()) > 1):
        raise CorruptPackError(f"{where}: tensor {entry.name}: {row[5]} bytes of blocks do not fit its scheme")
    if entry.block_bytes and entry.num_channels > MAX_RATIO * entry.block_bytes:
        raise CorruptPackError(f"{where}: tensor {entry.name}: {row[5]} bytes cannot hold {entry.num_channels} blocks")
    return _checked_frames(entry, where)


def _kept_entry(row: object, where: str) -> Entry:
    return _checked_frames(_entry(row, where), where)


def _entry(row: object, where: str) -> Entry:
    if not isinstance(row, list) or len(row) != 4:
        raise CorruptPackError(f"{where}: expected name, dtype, shape and frames, got {row!r:.80}")
    name, dtype, shape, frame_bytes = row
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptPackError(f"{where}: expected a name and a known dtype, got {name!r:.80}, {dtype!r:.40}")
    _check_name(name, where)
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS or math.prod(size or 1 for size in shape) > _MAX_SIZE:
        raise CorruptPackError(f"{where}: tensor {name}: expected a shape, got {shape!r:.80}")
    if not _are_sizes(frame_bytes):
        raise CorruptPackError(f"{where}: tensor {name}: expected sizes of frames, got {frame_bytes!r:.80}")
    return Entry(name=name, dtype=DTYPES[dtype], shape=tuple(shape), frame_bytes=tuple(frame_bytes))


def _checked_frames(entry: Entry, where: str) -> Entry:
    """The entry, if frames of these sizes can hold what its shape claims: a lie must not cost memory."""
    num_bytes = entry.num_items * entry.item_bytes
    if len(entry.frame_bytes) != num_frames(num_bytes):
        raise CorruptPackError(
            f"{where}: tensor {entry.name}: {len(entry.frame_bytes)} frames do not fit shape {list(entry.shape)}"
        )
    for size, (begin, end) in zip(entry.frame_bytes, entry.frame_extents(), strict=True):
        content = (end - begin) * entry.item_bytes
        if not content <= MAX_RATIO * size or size > longest_frame(content):
            raise CorruptPackError(f"{where}: tensor {entry.name}: a frame of {size} bytes cannot hold {content} bytes")
    return entry


def _check_name(name: str, where: str) -> None:
    fault = name_fault(name)
    if fault is not None:
        raise CorruptPackError(f"{where}: tensor {name!r:.80}: {fault}")


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_SIZE for value in values)
