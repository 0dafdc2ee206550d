"""Bytes as independent zstd frames, and back with every declared size checked first."""

from collections.abc import Sequence

import zstandard

from quantpack.errors import CorruptPackError

# Higher levels buy nothing on 4-bit codes: there are no matches to find, only skewed symbols.
LEVEL = 1
MIN_SPLIT_BYTES = 512 * 1024


def num_frames(num_bytes: int) -> int:
    """Frames that `num_bytes` are split into."""
    return max(1, num_bytes // MIN_SPLIT_BYTES)


def frame_extents(num_bytes: int) -> list[tuple[int, int]]:
    """(begin, end) of each frame's bytes: 512 KiB to 1 MiB each, or one smaller frame for less."""
    count = num_frames(num_bytes)
    return [(index * num_bytes // count, (index + 1) * num_bytes // count) for index in range(count)]


def compress_frames(data: memoryview) -> list[bytes]:
    """One zstd frame, with checksum and content size, for each of `frame_extents`."""
    return [compress_frame(data[begin:end]) for begin, end in frame_extents(len(data))]


def compress_frame(data: memoryview) -> bytes:
    """One zstd frame with checksum and content size."""
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True).compress(data)


def decompress_frames(data: memoryview, frame_bytes: Sequence[int], num_bytes: int, name: str) -> bytearray:
    """Undoes `compress_frames`.

    Args:
        data: The frames, one after the other.
        frame_bytes: Compressed bytes of each frame.
        num_bytes: Bytes that all frames together must give.
        name: The tensor's name, for errors.

    Raises:
        CorruptPackError: A frame is damaged or does not hold exactly what it must.
    """
    if len(frame_bytes) != num_frames(num_bytes) or sum(frame_bytes) != len(data):
        raise CorruptPackError(
            f"{name}: expected {num_frames(num_bytes)} frames in {len(data)} bytes, "
            f"got {len(frame_bytes)} in {sum(frame_bytes)}"
        )
    # Grown frame by frame, each checked first: a lying shape must not cost memory.
    result = bytearray()
    offset = 0
    for size, (begin, end) in zip(frame_bytes, frame_extents(num_bytes), strict=True):
        result += decompress_frame(data[offset : offset + size], end - begin, name)
        offset += size
    return result


def decompress_frame(frame: memoryview | bytes, num_bytes: int, name: str) -> bytes:
    """The content of one frame that must hold exactly `num_bytes`.

    Raises:
        CorruptPackError: It declares another size, has no checksum, is damaged, or is followed by other bytes.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if not parameters.has_checksum or parameters.dict_id != 0:
            raise CorruptPackError(f"{name}: expected a zstd frame with a checksum and without a dictionary")
        if parameters.content_size != num_bytes:
            raise CorruptPackError(
                f"{name}: expected a zstd frame of {num_bytes} bytes, its header says {parameters.content_size}"
            )
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptPackError(f"{name}: expected an intact zstd frame, got {error}") from error
    if len(content) != num_bytes:
        raise CorruptPackError(f"{name}: expected {num_bytes} bytes in a zstd frame, got {len(content)}")
    return content
