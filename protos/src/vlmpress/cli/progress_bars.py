"""Progress of long steps, on standard error."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_INTERVAL_S = 10.0


class Progress:
    """Tells how far a step is; `update` is cheap enough for every optimizer step."""

    def __init__(self, title: str, bars: RichProgress | None) -> None:
        self._title = title
        self._bars = bars
        self._task = bars.add_task(title, total=None) if bars is not None else None
        self._start_s = self._last_s = time.monotonic()
        self._start_done: int | None = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """Shows `done` of `total`, the time left and a note."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, description=f"{self._title} {note}".rstrip())
            return
        if self._start_done is None and done:
            self._start_done = done - 1  # a resumed step begins in the middle; what was done before tells no speed
        now_s = time.monotonic()
        if now_s - self._last_s < PLAIN_INTERVAL_S or self._start_done is None:
            return
        self._last_s = now_s
        left_s = (now_s - self._start_s) * (total - done) / max(1, done - self._start_done)
        print(f"{self._title}: {done}/{total} {note} ({left_s:.0f} s left)", file=sys.stderr, flush=True)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A bar with the time left on a terminal; elsewhere a plain line every ten seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress(title, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console) as bars:
        yield Progress(title, bars)
