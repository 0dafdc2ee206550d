"""Training functions on Ray Train's workers: killed, failing, given up, and closed to the network."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from vlmpress_services.errors import InvalidRequestError, ServicesError, WorkersDiedError
from vlmpress_services.workers.group import WorkerGroup
from vlmpress_services.workers.ray_runner import RayRunner
from vlmpress_services.workers.runners import LocalRunner


def group(folder: Path, num_workers: int = 2, **changes: Any) -> WorkerGroup:
    return WorkerGroup(num_workers=num_workers, storage=folder, name="run", **changes)


def silent(*_: Any) -> None:
    pass


def count(folder: Path, num_steps: int, kills: dict[int, int], on_progress: Any) -> dict[str, Any]:
    """Adds up what all workers have, step by step, and goes on from what it wrote down.

    The first worker kills one of all (step: rank) when the step is done.
    """
    import torch
    import torch.distributed

    path = folder / "total"
    done, total = map(int, path.read_text().split()) if path.exists() else (0, 0)
    start, rank = done, torch.distributed.get_rank()
    assert str(rank) == os.environ["RANK"]
    assert str(torch.distributed.get_world_size()) == os.environ["WORLD_SIZE"]
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    while done < num_steps:
        value = torch.tensor(done * (rank + 1))
        torch.distributed.all_reduce(value)
        done, total = done + 1, total + int(value)
        if rank == 0:
            draft = folder / ".total"
            draft.write_text(f"{done} {total}")
            draft.rename(path)
        on_progress(done, num_steps)
        if rank == 0 and done in kills and start < done:
            os.kill(int((folder / f"pid-{kills[done]}").read_text()), signal.SIGKILL)
    return {"start": start, "total": total, "threads": torch.get_num_threads(), "address": os.environ["MASTER_ADDR"]}


def fail_on_the_last(folder: Path, on_progress: Any) -> None:
    """One worker ends on purpose while the others wait for it."""
    import torch.distributed

    with (folder / "starts").open("a") as file:
        file.write(os.environ["RANK"])
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 1:
        raise InvalidRequestError("learning_rate: expected less")
    torch.distributed.barrier()


def die(folder: Path, on_progress: Any) -> None:
    with (folder / "deaths").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def go_on_for_ever(folder: Path, on_progress: Any) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        on_progress("still there")
        time.sleep(0.1)


def test_killed_workers_are_started_again_and_go_on(runner: RayRunner, tmp_path: Path) -> None:
    seen = []
    result = runner.train(
        count, tmp_path, 40, {8: 0, 20: 1}, group=group(tmp_path), on_progress=lambda done, _: seen.append(done)
    )
    assert result["start"] == 20
    assert result["total"] == 3 * sum(range(40))
    assert result["threads"] == 1
    assert result["address"] == "127.0.0.1"
    assert seen[-1] == 40


def test_an_error_on_purpose_ends_the_run_at_once(runner: RayRunner, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"^learning_rate: expected less$"):
        runner.train(fail_on_the_last, tmp_path, group=group(tmp_path), on_progress=silent)
    time.sleep(5)
    assert sorted((tmp_path / "starts").read_text()) == ["0", "1"], "it was tried again"


def test_workers_that_always_die_end_the_run(runner: RayRunner, tmp_path: Path) -> None:
    with pytest.raises(WorkersDiedError, match="run run: expected workers to die at most 1 times"):
        runner.train(die, tmp_path, group=group(tmp_path, 1, max_failures=1), on_progress=silent)
    assert (tmp_path / "deaths").read_text() == "xx"


def test_a_run_that_is_given_up_ends_its_workers(runner: RayRunner, tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def stop(note: str) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        runner.train(go_on_for_ever, tmp_path, group=group(tmp_path, 1), on_progress=stop)
    pid, deadline_s = int((tmp_path / "pid").read_text()), time.monotonic() + 60
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline_s, "the worker goes on"
        time.sleep(0.2)


def test_what_the_cluster_does_not_have_is_refused(runner: RayRunner, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="num_workers: expected a cluster of 1000 CPU"):
        runner.train(count, tmp_path, 1, {}, group=group(tmp_path, 1000), on_progress=silent)
    with pytest.raises(InvalidRequestError, match="num_workers: expected a cluster of 2 GPU"):
        runner.train(count, tmp_path, 1, {}, group=group(tmp_path, use_gpu=True), on_progress=silent)
    with pytest.raises(InvalidRequestError, match="num_workers: expected at least 1, got 0"):
        group(tmp_path, 0)


def test_the_cluster_is_closed_to_the_network(runner: RayRunner) -> None:
    listening = [
        connection.laddr
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_the_local_runner_does_the_same_in_this_process(tmp_path: Path) -> None:
    def here(note: str, on_progress: Any) -> int:
        on_progress(note)
        return os.getpid()

    seen: list[str] = []
    assert LocalRunner().train(here, "x", group=group(tmp_path, 1), on_progress=seen.append) == os.getpid()
    assert seen == ["x"]
    with pytest.raises(ServicesError, match="num_workers: expected 1 without Ray, got 2"):
        LocalRunner().train(here, "x", group=group(tmp_path, 2), on_progress=silent)
