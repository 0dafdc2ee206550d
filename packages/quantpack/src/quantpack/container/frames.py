"""Bytes as independent zstd frames, and back with every declared size checked first.

Parameters were chosen by measurement (benchmarks/bench_frames.py). Codes and planes hold skewed symbols and hardly a
repeat, so nearly all gain is in zstd's Huffman coding of literals: the search for matches is short and takes long
matches only. Longer searches cost time, and bytes too: a short match is dearer than its literals. Negative levels
and a target length switch Huffman coding off.

Codes under 1.6 bits each are the exception: Huffman coding spends a whole bit on every byte at least, and runs of the
commonest code are long. Such a frame is tried again with a search that weighs matches against literals, at a tenth of
the packing speed or less and no cost in decoding, and the smaller one is kept.
"""

from collections.abc import Iterable

import zstandard

from quantpack.errors import CorruptPackError

MIN_SPLIT_BYTES = 512 * 1024
# A run of 128 KiB takes a block of four bytes: no frame holds more for its size.
MAX_RATIO = 32 * 1024
# Frames under this share of their content are tried with the second parameters as well.
_SKEWED_SHARE = 0.4


def _parameters(
    strategy: int, min_match: int, hash_log: int, target_length: int
) -> zstandard.ZstdCompressionParameters:
    """A search for matches in one step, in a window that holds any frame."""
    return zstandard.ZstdCompressionParameters(
        strategy=strategy,
        min_match=min_match,
        hash_log=hash_log,
        target_length=target_length,
        chain_log=6,
        search_log=1,
        window_log=20,
        write_checksum=True,
        write_content_size=True,
    )


_PARAMETERS = _parameters(zstandard.STRATEGY_FAST, min_match=7, hash_log=6, target_length=0)
_SKEWED_PARAMETERS = _parameters(zstandard.STRATEGY_BTOPT, min_match=6, hash_log=8, target_length=999)
_CHECKSUM_BYTES = 4
_BLOCK_HEADER_BYTES = 3


def num_frames(num_bytes: int) -> int:
    """Frames that `num_bytes` are split into."""
    return max(1, num_bytes // MIN_SPLIT_BYTES)


def frame_extents(num_items: int, item_bytes: int = 1) -> list[tuple[int, int]]:
    """(begin, end) of each frame's items: 512 KiB to 1 MiB each, or one smaller frame for less."""
    count = num_frames(num_items * item_bytes)
    return [(index * num_items // count, (index + 1) * num_items // count) for index in range(count)]


def longest_frame(num_bytes: int) -> int:
    """More bytes than a frame of `num_bytes` ever takes here."""
    return num_bytes + num_bytes // 64 + 64


def compress_frames(data: memoryview) -> list[bytes]:
    """One zstd frame, with checksum and content size, for each of `frame_extents`."""
    return [compress_frame(data[begin:end]) for begin, end in frame_extents(len(data))]


def compress_frame(data: memoryview) -> bytes:
    """One zstd frame with checksum and content size."""
    frame = compress_pieces([data], len(data))
    if len(frame) >= _SKEWED_SHARE * len(data):
        return frame
    return min(frame, zstandard.ZstdCompressor(compression_params=_SKEWED_PARAMETERS).compress(data), key=len)


def compress_pieces(pieces: Iterable[memoryview], num_bytes: int) -> bytes:
    """One frame of all pieces; each starts a new block, so that its symbols get a code of their own.

    zstd stores a block that does not shrink as it is, at three bytes for 128 KiB.
    """
    compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS).compressobj(size=num_bytes)
    parts: list[bytes] = []
    for piece in pieces:
        if parts:
            parts.append(compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        parts.append(compressor.compress(piece))
    return b"".join([*parts, compressor.flush()])


def decompress_frame(frame: memoryview | bytes, num_bytes: int, name: str) -> bytearray:
    """The content of one frame that must hold exactly `num_bytes`.

    Raises:
        CorruptPackError: As `decompress_into`.
    """
    check_frame(frame, num_bytes, name)
    content = bytearray(num_bytes)
    decompress_into(frame, memoryview(content), name, zstandard.ZstdDecompressor())
    return content


def decompress_into(
    frame: memoryview | bytes, target: memoryview, name: str, decompressor: zstandard.ZstdDecompressor
) -> None:
    """Writes the content of one frame over `target`, which it must fill exactly.

    Args:
        frame: The frame and nothing else.
        target: Where the content goes.
        name: The tensor's name, for errors.
        decompressor: One that no other thread uses.

    Raises:
        CorruptPackError: The frame declares another size, has no checksum, is damaged, or is followed by other bytes.
    """
    check_frame(frame, len(target), name)
    try:
        with decompressor.stream_reader(frame) as reader:
            # Into no room at all nothing would be decoded, and no checksum compared.
            written = reader.readinto(target) if target else len(reader.read(1))
    except zstandard.ZstdError as error:
        raise CorruptPackError(f"{name}: expected an intact zstd frame, got {error}") from error
    if written != len(target):
        raise CorruptPackError(f"{name}: expected {len(target)} bytes in a zstd frame, got {written}")


def check_frame(frame: memoryview | bytes, num_bytes: int, name: str) -> None:
    """Looks at a frame's headers before anything is allocated or decoded.

    A stream reader takes a frame whose end is missing for one that is still to come, and never looks at what follows a
    frame. With the whole frame and nothing else in hand, and a target of its size, zstd decodes in one pass straight
    into the target and compares the checksum; this makes sure that it does.

    Raises:
        CorruptPackError: The frame declares another size, has no checksum, or does not end where its bytes do.
    """
    try:
        parameters = zstandard.get_frame_parameters(frame)
        header_bytes = zstandard.frame_header_size(frame)
    except zstandard.ZstdError as error:
        raise CorruptPackError(f"{name}: expected an intact zstd frame, got {error}") from error
    if not parameters.has_checksum or parameters.dict_id != 0:
        raise CorruptPackError(f"{name}: expected a zstd frame with a checksum and without a dictionary")
    if parameters.content_size != num_bytes:
        raise CorruptPackError(
            f"{name}: expected a zstd frame of {num_bytes} bytes, its header says {parameters.content_size}"
        )
    length = _frame_length(frame, header_bytes)
    if length != len(frame):
        raise CorruptPackError(f"{name}: expected an intact zstd frame of {len(frame)} bytes, its blocks say {length}")


def _frame_length(frame: memoryview | bytes, header_bytes: int) -> int:
    """Bytes of a frame with a checksum, from its block headers (RFC 8878, section 3.1.1.2); too many when cut off."""
    position, is_last = header_bytes, False
    while not is_last and position < len(frame):
        header = int.from_bytes(frame[position : position + _BLOCK_HEADER_BYTES], "little")
        is_last = bool(header & 1)
        # A block of type 1 is one byte, repeated.
        position += _BLOCK_HEADER_BYTES + (1 if header >> 1 & 3 == 1 else header >> 3)
    return position + _CHECKSUM_BYTES
