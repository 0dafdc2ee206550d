"""Runs work on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import ray

from vlmpress_services.errors import WorkersDiedError
from vlmpress_services.workers.group import OnReport, TaskResources, WorkerGroup
from vlmpress_services.workers.ray_cluster import ray_cluster
from vlmpress_services.workers.reporting import Reporter, Watch, result
from vlmpress_services.workers.runners import OnProgress

POLL_INTERVAL_S = 0.5
LOST = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
)
"""What Ray raises for a task that it does not start again."""


def _reporting(function: Callable[..., Any], board: Any, *arguments: Any) -> Any:
    """Runs in the worker."""
    _set_threads(1)
    reporter = Reporter(board)
    made = function(*arguments, on_progress=reporter)
    reporter.flush()
    return made


def _plain(function: Callable[..., Any], num_threads: int, *arguments: Any) -> Any:
    _set_threads(num_threads)
    return function(*arguments)


def _set_threads(number: int) -> None:
    """By default one torch thread, as in the local runner: sums in another order would be another result."""
    import torch

    torch.set_num_threads(number)


class RayRunner:
    """Work as Ray tasks, by default one core each."""

    name = "ray"

    def call(self, function: Callable[..., Any], *arguments: Any, on_progress: OnProgress) -> Any:
        """One task; its progress comes through an actor."""
        watch = Watch(on_progress)
        pending = ray.remote(num_cpus=1)(_reporting).remote(function, watch.board, *arguments)
        while not ray.wait([pending], timeout=POLL_INTERVAL_S)[0]:
            watch.look()
        made = result(pending)
        watch.look()
        return made

    def each(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], resources: TaskResources
    ) -> Iterator[tuple[int, Any]]:
        """One task each; Ray starts those again whose worker or node died."""
        retries = resources.max_failures
        task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=retries)(_plain)
        threads = max(1, int(resources.cpus))
        waiting = iter(enumerate(arguments))
        most = len(arguments) if resources.max_running is None else resources.max_running
        pending: dict[Any, int] = {}
        try:
            while True:
                for index, one in islice(waiting, most - len(pending)):
                    pending[task.remote(function, threads, *one)] = index
                if not pending:
                    return
                for reference in ray.wait(list(pending))[0]:
                    yield pending.pop(reference), _result(reference, resources)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """Ray Train's workers; see `train_on_workers`."""
        # Ray Train takes seconds to import; who only calls does not pay for it.
        from vlmpress_services.workers.distributed import train_on_workers

        return train_on_workers(function, *arguments, group=group, on_progress=on_progress)


def _result(reference: Any, resources: TaskResources) -> Any:
    try:
        return result(reference)
    except LOST as error:
        raise WorkersDiedError(
            f"task: expected its workers to die at most {resources.max_failures} times, got one time more"
        ) from error


@contextmanager
def ray_runner(num_cpus: int = 1) -> Iterator[RayRunner]:
    """A runner on the cluster of `ray_cluster`, for the length of a block."""
    with ray_cluster(num_cpus):
        yield RayRunner()
