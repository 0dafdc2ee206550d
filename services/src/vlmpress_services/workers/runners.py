"""Where work runs: the protocol of a runner, and the runner that needs nothing but this process; imports no Ray."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.locking import locked
from vlmpress_services.workers.group import OnReport, TaskResources, WorkerGroup

OnProgress = Callable[[int, int, str], None]


class Runner(Protocol):
    """Runs functions of importable modules with picklable arguments."""

    name: str

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """`function(*arguments, on_progress=...)`, wherever it runs."""

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], resources: TaskResources
    ) -> Iterator[tuple[int, Any]]:
        """`function(*one)` for each one: its index and result, in whatever order they come.

        The first error ends the others. A call whose worker dies is made again, so it must do no harm twice.

        Raises:
            WorkersDiedError: A call's workers died more often than the resources allow.
            Exception: What a call raises.
        """

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """`function(*arguments, on_progress=...)` on all workers of a group at once; gives what rank 0 returns."""


class LocalRunner:
    """Runs everything in this process, one after another."""

    name = "local"

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """Calls at once."""
        return function(*arguments, on_progress=on_progress)

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], resources: TaskResources
    ) -> Iterator[tuple[int, Any]]:
        """Calls one after another."""
        for index, one in enumerate(arguments):
            yield index, function(*one)

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
