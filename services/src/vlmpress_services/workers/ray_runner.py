"""Runs work on a Ray cluster."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from vlmpress_services.pipeline.runners import OnProgress
from vlmpress_services.workers.group import OnReport, WorkerGroup
from vlmpress_services.workers.ray_cluster import ray_cluster

POLL_INTERVAL_S = 0.5


class _Board:
    """Holds the last progress a worker reported."""

    def __init__(self) -> None:
        self._state = (0, 0, "")

    def report(self, done: int, total: int, note: str) -> None:
        self._state = (done, total, note)

    def read(self) -> tuple[int, int, str]:
        return self._state


def _reporting(function: Callable[..., Any], board: Any, *arguments: Any) -> Any:
    """Runs in the worker: tells the board at most every half second."""
    _single_thread()
    last_s = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s >= POLL_INTERVAL_S:
            last_s = now_s
            board.report.remote(done, total, note)

    return function(*arguments, on_progress=report)


def _plain(function: Callable[..., Any], *arguments: Any) -> Any:
    _single_thread()
    return function(*arguments)


def _single_thread() -> None:
    """One torch thread, as in the local runner: sums in another order would be another result."""
    import torch

    torch.set_num_threads(1)


class RayRunner:
    """Work as Ray tasks, one core each."""

    name = "ray"

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """One task; its progress comes through an actor."""
        board: Any = ray.remote(num_cpus=0)(_Board)
        board = board.remote()
        pending = ray.remote(num_cpus=1)(_reporting).remote(function, board, *arguments)
        while not ray.wait([pending], timeout=POLL_INTERVAL_S)[0]:
            on_progress(*ray.get(board.read.remote()))
        return _result(pending)

    def map(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], on_progress: OnProgress
    ) -> list[Any]:
        """One task each."""
        task = ray.remote(num_cpus=1)(_plain)
        references = [task.remote(function, *each) for each in arguments]
        pending = list(references)
        while pending:
            _, pending = ray.wait(pending)
            on_progress(len(references) - len(pending), len(references), "")
        return [_result(reference) for reference in references]

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """Ray Train's workers; see `train_on_workers`."""
        # Ray Train takes seconds to import; who only calls does not pay for it.
        from vlmpress_services.workers.distributed import train_on_workers

        return train_on_workers(function, *arguments, group=group, on_progress=on_progress)


def _result(reference: Any) -> Any:
    """The task's result, or the error it raised, as if it had been called here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


@contextmanager
def ray_runner() -> Iterator[RayRunner]:
    """A runner on the cluster of `ray_cluster`, for the length of a block."""
    with ray_cluster():
        yield RayRunner()
