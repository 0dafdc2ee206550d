"""What runs work, and the runner that needs nothing: this process."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.locking import locked
from vlmpress_services.workers.group import OnReport, WorkerGroup

OnProgress = Callable[[int, int, str], None]


class Runner(Protocol):
    """Runs functions of importable modules with picklable arguments."""

    name: str

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """`function(*arguments, on_progress=...)`, wherever it runs."""

    def map(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], on_progress: OnProgress
    ) -> list[Any]:
        """`function(*each)` for each, results in order; progress counts finished calls."""

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """`function(*arguments, on_progress=...)` on all workers of a group at once; gives what rank 0 returns."""


class LocalRunner:
    """Runs everything in this process, one after another."""

    name = "local"

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """Calls at once."""
        return function(*arguments, on_progress=on_progress)

    def map(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], on_progress: OnProgress
    ) -> list[Any]:
        """Calls one after another."""
        results = []
        for number, each in enumerate(arguments, 1):
            results.append(function(*each))
            on_progress(number, len(arguments), "")
        return results

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """Calls at once: one worker, this process.

        Raises:
            InvalidRequestError: More than one worker is asked for.
            LockedError: Another process is at work on the same run.
        """
        if group.num_workers > 1:
            raise InvalidRequestError(f"num_workers: expected 1 without Ray, got {group.num_workers}")
        with locked(group.lock):
            return function(*arguments, on_progress=on_progress)
