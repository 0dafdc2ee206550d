"""How fast a pack is on this machine."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from quantpack.container.reading import PackReader
from quantpack.errors import CorruptPackError
from quantpack.loading import load
from quantpack.opening import open_pack
from quantpack.progress import OnProgress
from quantpack.source import WEIGHTS
from quantpack.verifying import verify


@dataclass(frozen=True, kw_only=True, slots=True)
class PackTimes:
    """Medians over the rounds; speeds are of codes at two a byte.

    Attributes:
        decode_mb_per_s: Frames to packed codes on one thread, every check included.
        zstd_mb_per_s: Plain zstd on the same frames.
        decode_ratio: Of the two speeds, round by round.
        verify_s: Every byte compared with the manifest, every frame decoded.
        load_s: `load`, dequantized; None for a pack of a plain file.
    """

    decode_mb_per_s: float
    zstd_mb_per_s: float
    decode_ratio: float
    verify_s: float
    load_s: float | None


def time_pack(directory: Path, rounds: int = 5, on_progress: OnProgress | None = None) -> PackTimes:
    """Times a pack; files are in the page cache from the second round on.

    Args:
        directory: The pack.
        rounds: At least 1.
        on_progress: Called after each round.

    Raises:
        NotAPackError: The directory is no pack.
        CorruptPackError: A byte is not as it was written, or there is no code to decode.
    """
    directory = Path(directory)
    open_pack(directory, check_bytes=False)
    reader = PackReader(directory / WEIGHTS, num_threads=1)
    names = [entry.name for entry in reader.index.quantized]
    if not names:
        raise CorruptPackError(f"{directory}: expected at least one quantized tensor to time, found none")
    num_mb = sum(-(-entry.num_weights // 2) for entry in reader.index.quantized) / 1e6
    decompressor = zstandard.ZstdDecompressor()
    plain, ours, verified, loaded = [], [], [], []
    for number in range(1, rounds + 1):
        # Both keep what they make, for a reader has to: new memory costs as much as decoding.
        plain.append(_seconds(lambda: [decompressor.decompress(f) for name in names for f in reader.frames(name)]))
        ours.append(_seconds(lambda: [reader.packed(name) for name in names]))
        verified.append(_seconds(lambda: verify(directory)))
        if (directory / "config.json").exists():
            loaded.append(_seconds(lambda: load(directory)))
        if on_progress is not None:
            on_progress(number, rounds, "bench")
    return PackTimes(
        decode_mb_per_s=num_mb / statistics.median(ours),
        zstd_mb_per_s=num_mb / statistics.median(plain),
        decode_ratio=statistics.median(a / b for a, b in zip(plain, ours, strict=True)),
        verify_s=statistics.median(verified),
        load_s=statistics.median(loaded) if loaded else None,
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
