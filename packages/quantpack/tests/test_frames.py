from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import zstandard

from quantpack import CorruptPackError
from quantpack.container.decoding import FrameSet
from quantpack.container.frames import (
    MAX_RATIO,
    compress_frame,
    compress_frames,
    compress_pieces,
    decompress_frame,
    frame_extents,
    longest_frame,
)

KIB = 1024


@pytest.mark.parametrize("item_bytes", [1, 2, 8])
@pytest.mark.parametrize(
    "num_bytes", [0, 1, 255 * KIB, 512 * KIB - 1, 512 * KIB, 1024 * KIB - 1, 1024 * KIB, 1025 * KIB, 5_000_001]
)
def test_frames_are_512_kib_to_1_mib_or_one(num_bytes: int, item_bytes: int) -> None:
    num_items = num_bytes // item_bytes
    extents = frame_extents(num_items, item_bytes)
    assert extents[0][0] == 0
    assert extents[-1][1] == num_items
    assert all(end == begin for (_, end), (begin, _) in pairwise(extents))
    sizes = [(end - begin) * item_bytes for begin, end in extents]
    assert max(sizes) <= 1024 * KIB
    assert len(extents) == 1 or min(sizes) > 511 * KIB


def frame_set(frames: list[bytes], num_bytes: int) -> FrameSet:
    return FrameSet(
        data=memoryview(b"".join(frames)),
        frame_bytes=[len(frame) for frame in frames],
        extents=frame_extents(num_bytes),
        item_bytes=1,
        where="layers.0",
    )


def ignore(*_: object) -> None:
    pass


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("num_bytes", [0, 1, 1000, 1_500_000, 5_000_001])
def test_round_trip(num_bytes: int, num_threads: int) -> None:
    data = (np.arange(num_bytes) ** 2 % 251).astype(np.uint8)
    frames = compress_frames(data.data)
    for frame in frames:
        parameters = zstandard.get_frame_parameters(frame)
        assert parameters.has_checksum
        assert parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN
    whole = np.zeros(num_bytes, dtype=np.uint8)
    frame_set(frames, num_bytes).read_into(whole, ignore, num_threads)
    assert np.array_equal(whole, data)
    pieces = np.zeros(num_bytes, dtype=np.uint8)

    def put(begin: int, end: int, content: np.ndarray) -> None:
        pieces[begin:end] = content

    frame_set(frames, num_bytes).for_each(put, num_threads)
    assert np.array_equal(pieces, data)


def test_every_frame_decodes_alone() -> None:
    data = bytes(1_500_000)
    frames = compress_frames(memoryview(data))
    extents = frame_extents(len(data))
    assert len(frames) == len(extents) == 2
    for frame, (begin, end) in zip(frames, extents, strict=True):
        assert decompress_frame(frame, end - begin, "w") == data[begin:end]


def test_pieces_make_one_frame_with_a_code_of_their_own_each() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 20_000, dtype=np.uint8)
    skewed = random.binomial(8, 0.5, 20_000).astype(np.uint8)
    frame = compress_pieces([noise.data, skewed.data], 40_000)
    assert decompress_frame(frame, 40_000, "w") == noise.tobytes() + skewed.tobytes()
    assert len(frame) < 0.98 * len(compress_frame(np.concatenate([noise, skewed]).data))


def test_bytes_under_three_bits_are_searched_for_runs_as_well() -> None:
    random = np.random.default_rng(0)
    codes = np.minimum(random.geometric(0.85, (2, 100_000)) - 1, 15).astype(np.uint8)
    data = codes[0] | codes[1] << 4
    frame = compress_frame(data.data)
    assert decompress_frame(frame, len(data), "w") == data.tobytes()
    assert len(frame) < 0.9 * len(compress_pieces([data.data], len(data)))


def test_noise_hardly_grows() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    assert len(compress_frame(noise.data)) <= len(noise) + 50 < longest_frame(len(noise))


def test_no_frame_holds_more_than_the_ratio_says() -> None:
    assert MAX_RATIO * len(compress_frame(memoryview(bytes(KIB * KIB)))) > KIB * KIB


def bad_frames() -> dict[str, bytes]:
    data = bytes(range(100))
    good = zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data)
    return {
        "empty": b"",
        "no zstd": b"PK\x03\x04" + good,
        "truncated": good[:-5],
        "truncated checksum": good[:-1],
        "header only": good[:6],
        "no checksum": zstandard.ZstdCompressor(level=1, write_checksum=False).compress(data),
        "no size": zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=False).compress(data),
        "followed by a byte": good + b"\0",
        "followed by a frame": good + good,
        "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
        "skippable, then good": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + good,
        "reserved block": good[:6] + bytes([good[6] | 6]) + good[7:],
        "bomb": zstandard.ZstdCompressor(level=1, write_checksum=True).compress(bytes(64 << 20)),
        "declares 1 GiB": b"\x28\xb5\x2f\xfd\xa4" + (1 << 30).to_bytes(4, "little") + good[6:],
        "flipped": good[:-8] + bytes([good[-8] ^ 1]) + good[-7:],
        "flipped checksum": good[:-1] + bytes([good[-1] ^ 1]),
    }


@pytest.mark.parametrize("name", bad_frames())
def test_bad_frames_are_refused_by_name(name: str) -> None:
    with pytest.raises(CorruptPackError, match=r"^layers\.0: expected"):
        decompress_frame(bad_frames()[name], 100, "layers.0")


def every_cut(frame: bytes) -> list[bytes]:
    return [frame[:size] for size in range(len(frame))]


def every_flip(frame: bytes) -> list[bytes]:
    return [
        frame[:place] + bytes([frame[place] ^ (1 << bit)]) + frame[place + 1 :]
        for place in range(len(frame))
        for bit in range(8)
    ]


@pytest.mark.parametrize("change", [every_cut, every_flip])
@pytest.mark.parametrize("num_bytes", [0, 1, 300])
def test_changed_frames_are_refused_or_hold_the_same(change: Callable[[bytes], list[bytes]], num_bytes: int) -> None:
    data = np.random.default_rng(0).binomial(8, 0.5, num_bytes).astype(np.uint8).tobytes()
    refused = 0
    changed = change(compress_frame(memoryview(data)))
    for frame in changed:
        try:
            assert decompress_frame(frame, num_bytes, "layers.0") == data
        except CorruptPackError:
            refused += 1
    # A few bits of a frame's header are unused.
    assert refused > 0.95 * len(changed)


def test_one_bad_frame_among_threads_is_refused() -> None:
    frames = compress_frames(memoryview(bytes(range(256)) * 40_000))
    assert len(frames) > 10
    frames[7] = frames[7][:-1] + bytes([frames[7][-1] ^ 1])
    with pytest.raises(CorruptPackError, match=r"^layers\.0: expected an intact zstd frame"):
        frame_set(frames, 10_240_000).read_into(np.empty(10_240_000, dtype=np.uint8), ignore, 4)
