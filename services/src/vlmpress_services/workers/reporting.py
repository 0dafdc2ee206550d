"""A worker's side of a distributed run, and the board that carries word of it to whoever started it."""

import time
from typing import Any

import ray
from ray.train import get_context

from vlmpress.artifact import ArtifactError
from vlmpress.cli import UserError
from vlmpress.data import DataError
from vlmpress_services.errors import PackageError, ServicesError, StoppingError
from vlmpress_services.locking import locked

REPORT_INTERVAL_S = 0.5
# Raised on purpose: another attempt would end the same way.
FINAL_ERRORS = (ServicesError, PackageError, ArtifactError, DataError, UserError)


class Board:
    """An actor that holds what rank 0 last reported and what ended the run for good."""

    def __init__(self) -> None:
        self._number = 0
        self._report: tuple[Any, ...] = ()
        self._error: Exception | None = None

    def report(self, *report: Any) -> None:
        """Keeps a report; raises what ended the run."""
        if self._error is not None:
            raise self._error
        self._number, self._report = self._number + 1, report

    def fail(self, error: Exception) -> None:
        """Ends the run for good; the first error counts."""
        self._error = self._error or error

    def stop(self) -> None:
        """Ends the run for good because nobody wants it any more."""
        self.fail(StoppingError("the run was given up"))

    def read(self) -> tuple[int, tuple[Any, ...], Exception | None]:
        """Number of reports, the last of them, and what ended the run."""
        return self._number, self._report, self._error


class _Reporter:
    """Passes reports on, not more than one in each interval, the last one in any case."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._waiting: tuple[Any, ...] | None = None
        self._last_s = 0.0

    def __call__(self, *report: Any) -> None:
        self._waiting = report
        if time.monotonic() - self._last_s >= REPORT_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Passes on what still waits."""
        if self._waiting is not None:
            ray.get(self._board.report.remote(*self._waiting))
            self._waiting, self._last_s = None, time.monotonic()


def as_worker(config: dict[str, Any]) -> Any:
    """Runs the function of `train_on_workers` on one worker."""
    import torch

    group, board = config["group"], config["board"]
    # As in the local runner: sums in another order would be another result.
    torch.set_num_threads(group.cpus_per_worker)
    error = ray.get(board.read.remote())[2]
    if error is not None:
        raise error
    try:
        if get_context().get_world_rank() != 0:
            return config["function"](*config["arguments"], on_progress=_silent)
        reporter = _Reporter(board)
        with locked(group.lock):
            result = config["function"](*config["arguments"], on_progress=reporter)
        reporter.flush()
        return result
    except FINAL_ERRORS as error:
        ray.get(board.fail.remote(error))
        raise


def _silent(*_: Any) -> None:
    """What ranks other than 0 report."""
