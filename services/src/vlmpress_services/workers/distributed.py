"""Runs one training function on several workers at once: Ray Train starts them, and starts them again when one dies.

A worker sees what torchrun would give it: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, and a torch
process group that is there already (gloo; nccl on GPUs, of which each worker sees its own). Nothing passes through
Ray's own checkpoints: a function goes on from what it finds in its own folder, and then ends as if nobody had died.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import ray
from ray.train import TrainingFailedError, get_context
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from vlmpress_services.errors import EXPECTED, InvalidRequestError, WorkersDiedError
from vlmpress_services.locking import locked
from vlmpress_services.workers.group import OnReport, WorkerGroup
from vlmpress_services.workers.ray_cluster import ray_cluster
from vlmpress_services.workers.reporting import Reporter, Watch
from vlmpress_services.workers.torch_config import OwnGpus

POLL_INTERVAL_S = 0.5
STARTUP_FAILURES = 2


def train_on_workers(function: Callable[..., Any], *arguments: Any, group: WorkerGroup, on_progress: OnReport) -> Any:
    """`function(*arguments, on_progress=...)` on every worker at once; gives what rank 0 returns.

    Ends the workers when `on_progress` raises.

    Args:
        function: Of an importable module; returns no tensors. What it reports, rank 0 alone passes on.
        arguments: Picklable.
        group: The workers.
        on_progress: Called with what the function last reported, about twice a second.

    Raises:
        InvalidRequestError: The cluster has fewer cores or GPUs than the workers need.
        WorkersDiedError: Workers died more often than `group.max_failures` says.
        Exception: What the function raised on purpose on any worker, as if it had been called here.
    """
    with ray_cluster(group.num_workers * group.cpus_per_worker):
        group = _placed(group)
        watch = Watch(on_progress)
        trainer: Any = _trainer(function, arguments, group, watch.board)
        ended = _in_thread(lambda: trainer.fit().return_value)
        try:
            while not wait([ended], POLL_INTERVAL_S).done:
                watch.look()
            watch.look()
        except BaseException:
            # A cluster of ours ends with the block; in another one workers find out when they next report.
            watch.give_up()
            raise
        try:
            return ended.result()
        except TrainingFailedError as error:
            raise WorkersDiedError(
                f"run {group.name}: expected workers to die at most {group.max_failures} times, got once more"
            ) from error


def _on_worker(config: dict[str, Any]) -> Any:
    """Runs the function on one worker.

    Ray starts workers again whatever they raised, so after an error that ends the run for good all of them return.
    """
    import torch

    group, reporter = config["group"], Reporter(config["board"])
    # As in the local runner: sums in another order would be another result.
    torch.set_num_threads(group.cpus_per_worker)
    if reporter.error() is not None:
        return None
    try:
        if get_context().get_world_rank() != 0:
            return config["function"](*config["arguments"], on_progress=_silent)
        with locked(group.lock):
            result = config["function"](*config["arguments"], on_progress=reporter)
        reporter.flush()
        return result
    except Exception as error:
        if isinstance(error, EXPECTED):
            reporter.fail(error)
        # After an error of another worker this one has merely lost it.
        elif reporter.error() is None:
            raise
    torch.distributed.destroy_process_group()
    return None


def _silent(*_: Any) -> None:
    """What ranks other than 0 report."""


def _trainer(function: Callable[..., Any], arguments: tuple[Any, ...], group: WorkerGroup, board: Any) -> TorchTrainer:
    # Ray's two seconds would be most of a short run, and of every restart.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_INTERVAL_S))
    run_config: Any = RunConfig(
        name=group.name,
        storage_path=str(group.storage.resolve()),
        # Without a limit Ray tries for ever to start workers that cannot start.
        failure_config=FailureConfig(max_failures=group.max_failures, controller_failure_limit=STARTUP_FAILURES),
        logging_config=LoggingConfig(log_level="ERROR"),
    )
    return TorchTrainer(
        _on_worker,
        train_loop_config={"function": function, "arguments": arguments, "group": group, "board": board},
        scaling_config=ScalingConfig(
            num_workers=group.num_workers, use_gpu=bool(group.use_gpu), resources_per_worker=_resources(group)
        ),
        run_config=run_config,
        torch_config=OwnGpus(),
    )


def _resources(group: WorkerGroup) -> dict[str, float]:
    return {"CPU": float(group.cpus_per_worker), **({"GPU": 1.0} if group.use_gpu else {})}


def _placed(group: WorkerGroup) -> WorkerGroup:
    """The group as this cluster can hold it; Ray would wait for ever for what the cluster does not have."""
    there = ray.cluster_resources()
    if group.use_gpu is None:
        group = replace(group, use_gpu=there.get("GPU", 0) >= group.num_workers)
    for name, each in _resources(group).items():
        if there.get(name, 0) < group.num_workers * each:
            raise InvalidRequestError(
                f"num_workers: expected a cluster of {group.num_workers * each:g} {name}, got {there.get(name, 0):g}"
            )
    return group


def _in_thread(work: Callable[[], Any]) -> "Future[Any]":
    """A daemon's result: it must not hold up a process whose run is given up."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="ray train", daemon=True).start()
    return future
