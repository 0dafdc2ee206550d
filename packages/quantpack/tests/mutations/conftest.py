"""Packs changed part by part, with every size and digest around the change made to fit, so that each parser is reached.

A mutation depends on its number alone. QUANTPACK_MUTATIONS sets how many there are.
"""

import json
import math
import os
import resource
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard

from quantpack import QuantpackError
from quantpack.container.index import Index, decode_index
from quantpack.container.writing import CARRIERS, INDEX

ROOM_BYTES = 256 << 20

VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "w", "I8", "BF16", "F64", "agq", "rows", "tensor", "in"),
    *(0, 1, -1, 2, 7, 255, 256, 1 << 20, 1 << 31, 1 << 32, (1 << 48) - 1, 1 << 48, 1 << 63, 1 << 64, 10**40),
    *(0.0, 0.5, 1.5, -1.0, 1e-300, 1e308, math.nan, math.inf),
    *([], {}, [[]], [0], [1, 2, 3], {"x": 1}, [1 << 40, 1 << 40], [1 << 48, 0], [1] * 40, [[1]] * 3),
    *("../../up", "a/../../b", "/etc/passwd", "C:\\x", "a\nb", "a\0b", "\ud800", "__metadata__", "n" * 600, "\u202e"),
)


@dataclass
class Parts:
    """A pack taken apart: bytes of each carrier, and the index as JSON fields."""

    carriers: dict[str, bytes]
    index: Any

    def assemble(self, text: bytes | None = None) -> bytes:
        text = json.dumps(self.index).encode() if text is None else text
        frame = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(text)
        return with_header({**self.carriers, INDEX: frame})


def with_header(carriers: dict[str, bytes], change: Callable[[dict[str, Any]], object] = lambda _: None) -> bytes:
    fields: dict[str, Any] = {}
    begin = 0
    for name, data in carriers.items():
        fields[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [begin, begin + len(data)]}
        begin += len(data)
    text = json.dumps(change(fields) or fields).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(carriers.values())


def take_apart(data: bytes) -> Parts:
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    del header["__metadata__"]
    carriers = {name: data[slice(*(begin + at for at in row["data_offsets"]))] for name, row in header.items()}
    return Parts(carriers, json.loads(zstandard.decompress(carriers.pop(INDEX))))


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON tree."""
    keys = range(len(tree)) if isinstance(tree, list) else list(tree) if isinstance(tree, dict) else ()
    for key in keys:
        yield tree, key
        yield from nodes(tree[key])


def any_value(random: Random) -> Any:
    # A copy: what is put into a tree may be changed there.
    return json.loads(json.dumps(random.choice(VALUES)))


def change_tree(random: Random, tree: Any) -> None:
    """One small change anywhere in a JSON tree."""
    places = list(nodes(tree))
    if not places:
        return
    container, key = random.choice(places)
    value = container[key]
    kind = random.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, other_key = random.choice(places)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 2 and isinstance(container, list):
        container.insert(key, json.loads(json.dumps(value)))
    elif kind <= 3 and isinstance(value, int | float):
        container[key] = random.choice((value + 1, value - 1, value * 2, -value, value * 4096, value / 2, value % 2))
    elif kind == 4 and isinstance(container, dict):
        container[str(any_value(random))] = container.pop(key)
    else:
        container[key] = any_value(random)


def change_bytes(random: Random, data: bytes) -> bytes:
    """A few bytes flipped, cut out, put in, or all replaced."""
    if not data:
        return bytes(random.randrange(3))
    at, kind = random.randrange(len(data)), random.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data + random.randbytes(random.randrange(1, 9))
    if kind == 2:
        return data[:at] + data[at + random.randrange(1, 5) :]
    if kind == 3:
        return bytes([random.choice((0, 0x7F, 0x80, 0xFF))]) * len(data)
    if kind == 4:
        width = random.choice((2, 4, 8))
        filler = random.choice((b"\x00", b"\xff", b"\x7f\xc0", b"\x00\x00\x80\x7f")) * width
        return data[:at] + filler[: min(width, len(data) - at)] + data[at + width :]
    flipped = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        flipped[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def refit(parts: Parts) -> None:
    """Cuts or fills the carriers to the sizes that the index gives them, where it gives any."""
    index = decoded(parts)
    if index is None:
        return
    rows = [entry.carrier_bytes() for entry in index.quantized]
    sizes = [sum(row[number] for row in rows) for number in range(4)]
    for name, size in zip(CARRIERS, [*sizes, sum(sum(entry.frame_bytes) for entry in index.kept)], strict=True):
        if size < 1 << 20:
            data = parts.carriers[name] or b"\x3c"
            parts.carriers[name] = (data * -(-size // len(data)))[:size]
    seal(parts)


def decoded(parts: Parts) -> Index | None:
    """The index as the library reads it, if it does."""
    try:
        return decode_index(
            zstandard.ZstdCompressor(write_checksum=True).compress(json.dumps(parts.index).encode()), ""
        )
    except (QuantpackError, RecursionError):
        return None


def seal(parts: Parts) -> None:
    """Makes the checksums of scales and zeros fit."""
    index = decoded(parts)
    if index is None:
        return
    scales_at = zeros_at = 0
    for entry, row in zip(index.quantized, parts.index["quantized"], strict=True):
        _, num_scales, num_zeros, _ = entry.carrier_bytes()
        scales = parts.carriers[CARRIERS[1]][scales_at : scales_at + num_scales]
        zeros = parts.carriers[CARRIERS[2]][zeros_at : zeros_at + num_zeros]
        row[6] = zlib.crc32(zeros, zlib.crc32(scales))
        scales_at, zeros_at = scales_at + num_scales, zeros_at + num_zeros


def change_index(random: Random, parts: Parts) -> None:
    for _ in range(random.choice((1, 1, 2, 4))):
        change_tree(random, parts.index)
    if random.random() < 0.5:
        refit(parts)


def change_shape(random: Random, parts: Parts) -> None:
    """Another shape for as many or a few more weights, with carriers to fit."""
    row = random.choice([*parts.index["quantized"], *parts.index["kept"]])
    count = math.prod(row[2]) + random.choice((0, 0, 0, 1, -1))
    width = random.choice([size for size in range(1, 13) if count % size == 0])
    row[2] = random.choice(([width, count // width], [count // width, width, 1], [count], [1, count], [count, 1, 1, 1]))
    refit(parts)


def change_frame(random: Random, parts: Parts) -> None:
    """A frame with other content, in another form, or of more bytes than fit; sizes in the index follow."""
    table, carrier = random.choice((("quantized", CARRIERS[0]), ("kept", CARRIERS[4])))
    rows = parts.index[table]
    number = random.randrange(len(rows))
    begin = sum(sum(row[3]) for row in rows[:number])
    end = begin + sum(rows[number][3])
    data = parts.carriers[carrier]
    content = zstandard.decompress(data[begin:end])
    kind = random.randrange(7)
    if kind == 0:
        content = bytes(random.choice((1 << 20, 5 << 20)) if random.random() < 0.02 else 1 << 12)
    elif kind <= 4:
        content = change_bytes(random, content)
    frame = zstandard.ZstdCompressor(
        level=random.choice((1, 3)), write_checksum=random.random() < 0.9, write_content_size=random.random() < 0.9
    ).compress(content)
    if kind == 5:
        frame = change_bytes(random, frame)
    if kind == 6:
        declared = random.choice((0, 1, 1 << 20, 1 << 30, (1 << 32) - 1))
        frame = b"\x28\xb5\x2f\xfd\xa4" + declared.to_bytes(4, "little") + frame[6:]
    parts.carriers[carrier] = data[:begin] + frame + data[end:]
    rows[number][3] = [len(frame)]


def change_carrier(random: Random, parts: Parts) -> None:
    """Scales, zeros or blocks with other bytes, as many as before."""
    name = random.choice([name for name in CARRIERS[1:4] if parts.carriers[name]])
    data = parts.carriers[name]
    parts.carriers[name] = (change_bytes(random, data) + data)[: len(data)]
    if random.random() < 0.8:
        seal(parts)


def change_blocks(random: Random, parts: Parts) -> None:
    """The blocks of AGQ's channels, in a frame of their own."""
    for row in parts.index["quantized"]:
        if row[5]:
            content = change_bytes(random, zstandard.decompress(parts.carriers[CARRIERS[3]]))
            frame = zstandard.ZstdCompressor(write_checksum=True).compress(content)
            parts.carriers[CARRIERS[3]], row[5] = frame, len(frame)
            return
    change_carrier(random, parts)


PART_CHANGES = (change_index, change_index, change_shape, change_frame, change_frame, change_carrier, change_blocks)


def change_text(random: Random, parts: Parts) -> bytes:
    """The index's JSON as text."""
    text = json.dumps(parts.index).encode()
    kind = random.randrange(5)
    if kind == 0:
        return parts.assemble(b"[" * 100_000)
    if kind == 1:
        return parts.assemble(text[:-1] + b', "aliases": {"q": "w", "q": "w"}}')
    if kind == 2:
        return parts.assemble(text + b" " * random.choice((1, 1 << 16)))
    return parts.assemble(change_bytes(random, text))


def change_header(random: Random, parts: Parts) -> bytes:
    """The safetensors header: its fields, its text, its length."""
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(json.dumps(parts.index).encode())
    carriers = {**parts.carriers, INDEX: frame}
    kind = random.randrange(4)
    if kind <= 1:
        return with_header(carriers, lambda fields: change_tree(random, fields))
    data = with_header(carriers)
    if kind == 2:
        length = random.choice((0, 1, 2, 1 << 16, 1 << 31, 1 << 63, (1 << 64) - 1, len(data), len(data) - 8))
        return length.to_bytes(8, "little") + data[8:]
    end = 8 + int.from_bytes(data[:8], "little")
    text = change_bytes(random, data[8:end])
    return len(text).to_bytes(8, "little") + text + data[end:]


def mutate(number: int, bases: list[bytes]) -> bytes:
    random = Random(number)
    base = bases[number % len(bases)]
    if random.random() < 0.1:
        return change_bytes(random, base)
    parts = take_apart(base)
    choice = random.random()
    if choice < 0.1:
        return change_text(random, parts)
    if choice < 0.2:
        return change_header(random, parts)
    random.choice(PART_CHANGES)(random, parts)
    if random.random() < 0.2:
        # The second change may not find what it looks for.
        change_index(random, parts)
    return parts.assemble()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What asks for more than a mutation can need gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="session")
def num_mutations() -> int:
    return int(os.environ.get("QUANTPACK_MUTATIONS", "100000"))


@pytest.fixture(name="mutate", scope="session")
def mutate_fixture() -> Callable[[int, list[bytes]], bytes]:
    return mutate


@pytest.fixture(name="change_tree", scope="session")
def change_tree_fixture() -> Callable[[Random, Any], None]:
    return change_tree


@pytest.fixture(name="change_bytes", scope="session")
def change_bytes_fixture() -> Callable[[Random, bytes], bytes]:
    return change_bytes
