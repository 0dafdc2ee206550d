"""Packs whose parts lie, every digest around the lie made to fit: the parsers refuse them, before memory is taken."""

import json
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import torch
import zstandard
from safetensors.torch import load_file, save_file

from quantpack import (
    CorruptPackError,
    Scheme,
    SourceError,
    WeightError,
    pack,
    verify,
)
from quantpack.container.frames import compress_pieces
from quantpack.container.header import encode_header
from quantpack.container.index import Entry, Index, encode_index
from quantpack.container.planes import as_bytes, split_planes
from quantpack.container.reading import PackReader
from quantpack.container.writing import CARRIERS, INDEX, PackWriter

Reseal = Callable[[Path], None]


def rewrite_index(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Applies `change` to the index; what it returns, if anything, replaces it."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    fields = json.loads(zstandard.decompress(tensors["quantpack.index"].numpy().tobytes()))
    text = json.dumps(change(fields) or fields)
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(text.encode())
    tensors["quantpack.index"] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    save_file(tensors, path)


def set_field(table: str, column: int, value: object) -> Callable[[dict[str, list[list[object]]]], None]:
    def change(fields: dict[str, list[list[object]]]) -> None:
        fields[table][0][column] = value

    return change


NAMES = (
    "",
    "n" * 513,
    "__metadata__",
    "a\nb",
    "a\0b",
    "\ud800",
    "/etc/passwd",
    "../up",
    "a/../../b",
    "..",
    "C:\\x",
    "C:x",
)

LIES: dict[str, Callable[[dict], object]] = {
    "not an object": lambda _: ["index"],
    "version": lambda fields: fields.update(version=1),
    "scheme": lambda fields: fields.update(schemes=[{"bits": 4}]),
    "bits": lambda fields: fields["schemes"][0].update(bits=3),
    "huge group": lambda fields: fields["schemes"][0].update(group_size=1 << 40),
    "rows past 32 bits": lambda fields: fields["schemes"][0].update(granularity="rows", num_rows=10**40),
    "unhashable granularity": lambda fields: fields["schemes"][0].update(granularity=[]),
    "no schemes": lambda fields: fields.update(schemes=[]),
    "schemes no list": lambda fields: fields.update(schemes=7),
    "blocks no list": lambda fields: fields["schemes"][0].update(blocks=7),
    "axis": lambda fields: fields["schemes"][0].update(axis="up"),
    "scheme of nothing": set_field("quantized", 4, 1),
    "scheme no number": set_field("quantized", 4, "group"),
    "checksum": set_field("quantized", 6, 1),
    "checksum no number": set_field("quantized", 6, "0"),
    "blocks of one block": set_field("quantized", 5, 9),
    "row too short": lambda fields: fields["quantized"].append(["x"]),
    "row no list": lambda fields: fields["quantized"].append(7),
    "duplicate": lambda fields: fields["quantized"].append(fields["quantized"][0]),
    "quantized and kept": lambda fields: fields["kept"].append(fields["quantized"][0]),
    "aliases no object": lambda fields: fields.update(aliases=[["a", "w"]]),
    "alias of nothing": lambda fields: fields.update(aliases={"a": "nothing"}),
    "alias of an alias": lambda fields: fields.update(aliases={"a": "w", "c": "a"}),
    "alias taken": lambda fields: fields.update(aliases={"b": "w"}),
    "alias no name": lambda fields: fields.update(aliases={"a": []}),
    "name": set_field("quantized", 0, 3),
    "dtype": set_field("quantized", 1, "F128"),
    "dtype of codes": set_field("quantized", 1, "I32"),
    "wider dtype": set_field("quantized", 1, "F64"),
    "one dimension": set_field("quantized", 2, [15]),
    "empty": set_field("quantized", 2, [0, 5]),
    "negative": set_field("quantized", 2, [-3, -5]),
    "a float": set_field("quantized", 2, [3.0, 5]),
    "a bool": set_field("quantized", 2, [True, 15]),
    "larger": set_field("quantized", 2, [3, 6]),
    "terabytes": set_field("quantized", 2, [1 << 40, 1 << 40]),
    "endless": set_field("quantized", 2, [1 << 47] * 1000),
    "more frames": set_field("quantized", 3, [10, 10]),
    "no frames": set_field("quantized", 3, []),
    "longer frame": set_field("quantized", 3, [1000]),
    "kept shape": set_field("kept", 2, [4]),
    "kept dtype": set_field("kept", 1, "F64"),
    "kept terabytes": set_field("kept", 2, [1 << 40]),
    "overflowing": set_field("kept", 2, [1 << 48, 1 << 48, 0]),
    "too many dimensions": set_field("kept", 2, [1] * 17 + [3]),
    "frame too long": set_field("kept", 3, [100]),
    "frame too short": set_field("kept", 3, [0]),
    "deep": lambda _: json.loads("[" * 500 + "]" * 500),
    **{f"name {name!r:.20}": set_field("quantized", 0, name) for name in NAMES},
    **{f"alias {name!r:.20}": lambda fields, name=name: fields.update(aliases={name: "w"}) for name in NAMES},
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_indexes_are_refused(small_pack: Path, reseal: Reseal, lie: str) -> None:
    rewrite_index(small_pack, LIES[lie])
    reseal(small_pack)
    with pytest.raises(CorruptPackError) as caught:
        verify(small_pack)
    assert "\n" not in str(caught.value)


def test_a_bomb_in_the_index_is_refused(small_pack: Path, reseal: Reseal) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(100 << 20))
    tensors["quantpack.index"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    save_file(tensors, path)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="at most"):
        verify(small_pack)


def rewrite_header(directory: Path, change: Callable[[dict[str, dict[str, list[int]]]], str | None]) -> None:
    path = directory / "model.safetensors"
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    fields = json.loads(data[8:begin])
    text = (change(fields) or json.dumps(fields)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])


def overlap(fields: dict[str, dict[str, list[int]]]) -> None:
    begin, end = fields["quantpack.kept"]["data_offsets"]
    fields["quantpack.kept"].update(data_offsets=[begin - 1, end - 1])


def gap(fields: dict[str, dict[str, list[int]]]) -> None:
    row = fields["quantpack.codes"]
    row["data_offsets"][0] += 1
    row["shape"][0] -= 1


def past_the_end(fields: dict[str, dict[str, list[int]]]) -> None:
    row = fields["quantpack.index"]
    row["data_offsets"][1] += 1 << 40
    row["shape"][0] += 1 << 40


def twice(fields: dict[str, dict[str, list[int]]]) -> str:
    text = json.dumps(fields)
    return f'{text[:-1]}, "quantpack.codes": {json.dumps(fields["quantpack.codes"])}}}'


@pytest.mark.parametrize("change", [overlap, gap, past_the_end, twice, lambda _: "[" * 60_000, lambda _: "7"])
def test_lying_headers_are_refused(small_pack: Path, reseal: Reseal, change: Callable[..., str | None]) -> None:
    rewrite_header(small_pack, change)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match=r"model\.safetensors: expected") as caught:
        verify(small_pack)
    assert "\n" not in str(caught.value)


def test_a_frame_that_declares_a_gibibyte_is_not_allocated(small_pack: Path, reseal: Reseal) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 30))
    assert len(bomb) < 100_000
    tensors["quantpack.codes"] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    save_file(tensors, path)
    for shape in ([3, 5], [1 << 15, 1 << 16]):
        # Read with its own shape, or with the one that the frame holds: the index has frames of one mebibyte.
        rewrite_index(small_pack, set_field("quantized", 3, [len(bomb)]))
        rewrite_index(small_pack, set_field("quantized", 2, shape))
        reseal(small_pack)
        with little_room(64 << 20), pytest.raises(CorruptPackError, match="tensor w: "):
            verify(small_pack)


def test_a_small_file_that_claims_much_is_refused_before_anything_is_allocated(
    small_pack: Path, reseal: Reseal
) -> None:
    def claim(fields: dict[str, list[list[object]]]) -> None:
        # 64 GiB of codes in frames of 10 to 29 bytes.
        fields["quantized"][0][2:4] = [1 << 17, 1 << 20], Random(0).choices(range(10, 30), k=1 << 17)

    rewrite_index(small_pack, claim)
    reseal(small_pack)
    with (
        little_room(256 << 20),
        pytest.raises(CorruptPackError, match=r"tensor w: a frame of .. bytes cannot hold 524288"),
    ):
        verify(small_pack)


@contextmanager
def little_room(num_bytes: int) -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_100_000_tensors_are_opened_in_seconds(tmp_path: Path) -> None:
    tensor = torch.zeros(2)
    frame = compress_pieces(split_planes(as_bytes(tensor), tensor.dtype), 8)
    entries = [
        Entry(name=f"layers.{number}.bias", dtype=tensor.dtype, shape=(2,), frame_bytes=(len(frame),))
        for number in range(100_000)
    ]
    index = encode_index(Index(scheme=Scheme(), quantized=(), kept=tuple(entries), aliases={}))
    carriers = {**dict.fromkeys(CARRIERS, b""), CARRIERS[4]: frame * len(entries), INDEX: index}
    header = encode_header((name, "U8", [len(data)], len(data)) for name, data in carriers.items())
    (tmp_path / "many.safetensors").write_bytes(header + b"".join(carriers.values()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    reader = PackReader(tmp_path / "many.safetensors")
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
    assert len(reader.names) == 100_000
    assert torch.equal(reader.tensor("layers.99999.bias"), tensor)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_pack_holds_are_not_packed(name: str) -> None:
    with pytest.raises(WeightError, match="expected a"):
        PackWriter(Scheme()).add_kept(name, torch.zeros(1))


def test_names_out_of_the_folder_are_refused_in_sources(tmp_path: Path) -> None:
    save_file({"../w": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"tensor '\.\./w': expected a name that is no path"):
        pack(tmp_path / "w.safetensors", tmp_path / "pack", Scheme())


def test_a_writer_takes_every_name_once() -> None:
    writer = PackWriter(Scheme())
    writer.add_kept("a", torch.zeros(1))
    with pytest.raises(WeightError, match="tensor a: expected every name once"):
        writer.add_alias("a", "a")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_refused(small_pack: Path, reseal: Reseal, scale: float) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    tensors["quantpack.scales"][:4] = torch.tensor([scale]).view(torch.uint8)
    save_file(tensors, path)
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="tensor w: expected scales and zeros with the checksum of the index"):
        verify(small_pack)
    sides = (tensors[f"quantpack.{name}"].numpy().tobytes() for name in ("scales", "zeros"))
    rewrite_index(small_pack, set_field("quantized", 6, zlib.crc32(b"".join(sides))))
    reseal(small_pack)
    with pytest.raises(CorruptPackError, match="tensor w: expected finite positive scales"):
        verify(small_pack)


def test_every_flipped_scale_and_zero_is_found_by_the_parsers_alone(small_pack: Path) -> None:
    path = small_pack / "model.safetensors"
    tensors = load_file(path)
    for name in ("quantpack.scales", "quantpack.zeros"):
        for place in range(len(tensors[name])):
            changed = tensors[name].clone()
            changed[place] ^= 1
            save_file({**tensors, name: changed}, path)
            with pytest.raises(CorruptPackError, match="tensor w: expected"):
                PackReader(path).packed("w")
