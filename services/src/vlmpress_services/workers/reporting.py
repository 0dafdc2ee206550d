"""Carries word of work on Ray to whoever started it."""

import time
from collections.abc import Callable
from typing import Any

import ray

from vlmpress_services.errors import StoppingError

REPORT_INTERVAL_S = 0.5


class _Board:
    """What the work last reported, and what ended it for good."""

    def __init__(self) -> None:
        self._number = 0
        self._report: tuple[Any, ...] = ()
        self._error: Exception | None = None

    def report(self, *report: Any) -> None:
        """Keeps a report; raises what ended the work."""
        if self._error is not None:
            raise self._error
        self._number, self._report = self._number + 1, report

    def fail(self, error: Exception) -> None:
        """Ends the work for good; the first error counts."""
        self._error = self._error or error

    def read(self) -> tuple[int, tuple[Any, ...], Exception | None]:
        """Number of reports, the last of them, and what ended the work."""
        return self._number, self._report, self._error


class Watch:
    """The end of whoever started the work.

    Args:
        on_progress: Called with what was last reported.
    """

    def __init__(self, on_progress: Callable[..., None]) -> None:
        self.board: Any = ray.remote(num_cpus=0)(_Board).remote()
        self._on_progress = on_progress
        self._seen = 0

    def look(self) -> None:
        """Passes on what is new; raises what ended the work for good."""
        number, report, error = ray.get(self.board.read.remote())
        if number > self._seen:
            self._seen = number
            self._on_progress(*report)
        if error is not None:
            raise error

    def give_up(self) -> None:
        """Ends the work when it next reports."""
        self.board.fail.remote(StoppingError("the run was given up"))


class Reporter:
    """The worker's end; passes on not more than one report in each interval, the last one in any case."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._waiting: tuple[Any, ...] | None = None
        self._last_s = 0.0

    def __call__(self, *report: Any) -> None:
        """Reports; raises what ended the work for good."""
        self._waiting = report
        if time.monotonic() - self._last_s >= REPORT_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Passes on what still waits."""
        if self._waiting is not None:
            result(self._board.report.remote(*self._waiting))
            self._waiting, self._last_s = None, time.monotonic()

    def error(self) -> Exception | None:
        """What ended the work for good, on this worker or another."""
        found: Exception | None = ray.get(self._board.read.remote())[2]
        return found

    def fail(self, error: Exception) -> None:
        """Ends the work for good."""
        ray.get(self._board.fail.remote(error))


def result(reference: Any) -> Any:
    """The result of a call, or the error it raised, as if it had been called here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
