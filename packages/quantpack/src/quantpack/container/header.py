"""The header of a safetensors file: eight bytes of length, then JSON that says where each tensor lies.

Read here and not by the safetensors library, which lets the last of two equal names win and gives no view
of a mapped file.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantpack.errors import CorruptPackError

_LENGTH_BYTES = 8
# Six tensors take about 500 bytes.
_MAX_HEADER_BYTES = 64 * 1024
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """Where a tensor of bytes lies in its file."""

    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.end - self.begin


def encode_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """The header of (name, dtype, shape, bytes), stored in this order; its length is a multiple of 8."""
    fields: dict[str, Any] = {_METADATA: {"format": "pt"}}
    begin = 0
    for name, dtype, shape, num_bytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + num_bytes]}
        begin += num_bytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def read_header(data: memoryview, names: Collection[str], where: str) -> dict[str, Extent]:
    """Where each tensor of a pack's file lies; they must be these rows of bytes and fill the file, each byte once.

    Args:
        data: The whole file.
        names: Of the tensors.
        where: For errors.

    Raises:
        CorruptPackError: Names `where` and what is wrong.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) < _LENGTH_BYTES or not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - _LENGTH_BYTES):
        raise CorruptPackError(f"{where}: expected a pack's safetensors file, got {len(data)} bytes, header {length}")
    begin = _LENGTH_BYTES + length
    try:
        fields = json.loads(str(data[_LENGTH_BYTES:begin], "utf-8"), object_pairs_hook=unique_fields)
    except (ValueError, RecursionError) as error:
        raise CorruptPackError(f"{where}: expected a safetensors header, got {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise CorruptPackError(f"{where}: expected a safetensors header, got {type(fields).__name__}")
    fields.pop(_METADATA, None)
    if fields.keys() != set(names):
        raise CorruptPackError(f"{where}: expected the {len(names)} tensors of a pack, got {sorted(fields)!r:.200}")
    extents = {name: _extent(name, row, begin, where) for name, row in fields.items()}
    end = begin
    for extent in sorted(extents.values(), key=lambda extent: (extent.begin, extent.end)):
        if extent.begin != end:
            raise CorruptPackError(f"{where}: expected tensors side by side, got one from {extent.begin}, not {end}")
        end = extent.end
    if end != len(data):
        raise CorruptPackError(f"{where}: expected {end} bytes by its header, got {len(data)}")
    return extents


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's fields; raises ValueError where two have one name."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("two fields of one name")
    return fields


def one_line(error: Exception) -> str:
    """An error's type and text, without line ends and not endless."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


def _extent(name: str, row: object, offset: int, where: str) -> Extent:
    wanted = {"dtype", "shape", "data_offsets"}
    if not isinstance(row, Mapping) or row.keys() != wanted or row["dtype"] != "U8":
        raise CorruptPackError(f"{where}: {name!r:.80}: expected one row of uint8, got {row!r:.200}")
    shape, offsets = row["shape"], row["data_offsets"]
    if not _are_sizes(shape, 1) or not _are_sizes(offsets, 2) or offsets[1] - offsets[0] != shape[0]:
        raise CorruptPackError(f"{where}: {name!r:.80}: expected one row of uint8, got {row!r:.200}")
    return Extent(begin=offset + offsets[0], end=offset + offsets[1])


def _are_sizes(values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(type(v) is int and v >= 0 for v in values)
