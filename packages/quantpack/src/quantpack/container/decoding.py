"""All frames of a tensor, decoded by several threads: zstd leaves Python's lock while it works."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import zstandard

from quantpack.container.frames import decompress_into

# A thread takes about as long to start as a frame to decode.
_MIN_FRAMES_PER_THREAD = 2
_MAX_THREADS = 8

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSet:
    """The frames of one tensor.

    Attributes:
        data: The frames, one after the other; where they are mapped, nothing is copied.
        frame_bytes: Compressed bytes of each frame.
        extents: (begin, end) of each frame's items.
        item_bytes: Bytes of an item.
        where: File and tensor, for errors.
    """

    data: memoryview
    frame_bytes: Sequence[int]
    extents: Sequence[tuple[int, int]]
    item_bytes: int
    where: str

    def read_into(self, target: Bytes, check: Callable[[Bytes], None], num_threads: int) -> None:
        """Decodes into `target`, uint8 [all items' bytes]; `check` sees what each frame held.

        Raises:
            CorruptPackError: A frame is damaged or does not hold exactly what it must.
        """

        def work(begin: int, end: int, frame: memoryview, decompressor: zstandard.ZstdDecompressor) -> None:
            part = target[begin * self.item_bytes : end * self.item_bytes]
            decompress_into(frame, part.data, self.where, decompressor)
            check(part)

        self._run(work, num_threads)

    def for_each(self, use: Callable[[int, int, Bytes], None], num_threads: int) -> None:
        """Calls `use(begin, end, content)` for each frame, from several threads, with no more than a frame in each.

        Raises:
            CorruptPackError: A frame is damaged or does not hold exactly what it must.
        """

        def work(begin: int, end: int, frame: memoryview, decompressor: zstandard.ZstdDecompressor) -> None:
            content = np.empty((end - begin) * self.item_bytes, dtype=np.uint8)
            decompress_into(frame, content.data, self.where, decompressor)
            use(begin, end, content)

        self._run(work, num_threads)

    def frames(self) -> list[memoryview]:
        """Each frame's compressed bytes."""
        ends = accumulate(self.frame_bytes)
        return [self.data[end - size : end] for end, size in zip(ends, self.frame_bytes, strict=True)]

    def _run(self, work: Callable[[int, int, memoryview, zstandard.ZstdDecompressor], None], num_threads: int) -> None:
        jobs = [(begin, end, frame) for (begin, end), frame in zip(self.extents, self.frames(), strict=True)]

        def run_share(share: list[tuple[int, int, memoryview]]) -> None:
            decompressor = zstandard.ZstdDecompressor()
            for begin, end, frame in share:
                work(begin, end, frame, decompressor)

        num_shares = min(num_threads, len(jobs) // _MIN_FRAMES_PER_THREAD)
        if num_shares < 2:
            run_share(jobs)
            return
        with ThreadPoolExecutor(num_shares) as pool:
            list(pool.map(run_share, [jobs[number::num_shares] for number in range(num_shares)]))


def default_threads() -> int:
    """Processors this process may use, at most 8."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MAX_THREADS)
