"""Runs work on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from vlmpress_services.pipeline.runners import OnProgress
from vlmpress_services.workers.group import OnReport, WorkerGroup
from vlmpress_services.workers.ray_cluster import ray_cluster
from vlmpress_services.workers.reporting import Reporter, Watch, result

POLL_INTERVAL_S = 0.5


def _reporting(function: Callable[..., Any], board: Any, *arguments: Any) -> Any:
    """Runs in the worker."""
    _single_thread()
    return function(*arguments, on_progress=Reporter(board))


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
        watch = Watch(on_progress)
        pending = ray.remote(num_cpus=1)(_reporting).remote(function, watch.board, *arguments)
        while not ray.wait([pending], timeout=POLL_INTERVAL_S)[0]:
            watch.look()
        return result(pending)

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
        return [result(reference) for reference in references]

    def train(self, function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
        """Ray Train's workers; see `train_on_workers`."""
        # Ray Train takes seconds to import; who only calls does not pay for it.
        from vlmpress_services.workers.distributed import train_on_workers

        return train_on_workers(function, *arguments, group=group, on_progress=on_progress)


@contextmanager
def ray_runner(num_cpus: int = 1) -> Iterator[RayRunner]:
    """A runner on the cluster of `ray_cluster`, for the length of a block."""
    with ray_cluster(num_cpus):
        yield RayRunner()
