from itertools import pairwise

import pytest
import zstandard

from quantpack import CorruptPackError
from quantpack.container.frames import compress_frames, decompress_frame, decompress_frames, frame_extents

KIB = 1024


@pytest.mark.parametrize(
    "num_bytes", [0, 1, 255 * KIB, 512 * KIB - 1, 512 * KIB, 1024 * KIB - 1, 1024 * KIB, 1025 * KIB, 5_000_001]
)
def test_frames_are_256_kib_to_1_mib_or_one(num_bytes: int) -> None:
    extents = frame_extents(num_bytes)
    assert extents[0][0] == 0
    assert extents[-1][1] == num_bytes
    assert all(end == begin for (_, end), (begin, _) in pairwise(extents))
    if len(extents) > 1:
        assert all(256 * KIB <= end - begin <= 1024 * KIB for begin, end in extents)
    else:
        assert num_bytes <= 1024 * KIB


@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 1_500_000])
def test_round_trip(num_bytes: int) -> None:
    data = bytes(index * index % 251 for index in range(num_bytes))
    frames = compress_frames(memoryview(data))
    for frame in frames:
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        assert parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN
    joined = b"".join(frames)
    sizes = [len(frame) for frame in frames]
    assert decompress_frames(memoryview(joined), sizes, num_bytes, "w") == data


def test_every_frame_decodes_alone() -> None:
    data = bytes(1_500_000)
    frames = compress_frames(memoryview(data))
    extents = frame_extents(len(data))
    assert len(frames) == len(extents) == 2
    for frame, (begin, end) in zip(frames, extents, strict=True):
        assert decompress_frame(frame, end - begin, "w") == data[begin:end]


def bad_frames() -> dict[str, bytes]:
    data = bytes(range(100))
    good = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    return {
        "empty": b"",
        "no zstd": b"PK\x03\x04" + good,
        "truncated": good[:-5],
        "no checksum": zstandard.ZstdCompressor(level=1, write_checksum=False).compress(data),
        "no size": zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=False).compress(data),
        "followed by a byte": good + b"\0",
        "followed by a frame": good + good,
        "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
        "bomb": zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bytes(64 << 20)),
        "declares 1 GiB": b"\x28\xb5\x2f\xfd\xa4" + (1 << 30).to_bytes(4, "little") + good[6:],
        "flipped": good[:-8] + bytes([good[-8] ^ 1]) + good[-7:],
    }


@pytest.mark.parametrize("name", bad_frames())
def test_bad_frames_are_refused_by_name(name: str) -> None:
    with pytest.raises(CorruptPackError, match=r"^layers\.0: expected"):
        decompress_frame(bad_frames()[name], 100, "layers.0")


def test_sizes_that_do_not_add_up_are_refused() -> None:
    frame = compress_frames(memoryview(bytes(100)))[0]
    for sizes, num_bytes in (([len(frame) + 1], 100), ([1, len(frame) - 1], 100), ([len(frame)], 1 << 60)):
        with pytest.raises(CorruptPackError, match="expected"):
            decompress_frames(memoryview(frame), sizes, num_bytes, "w")
