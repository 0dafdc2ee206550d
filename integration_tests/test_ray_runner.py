"""Independent tasks on Ray: how many at a time, and when their workers die."""

import os
import signal
import time
from pathlib import Path

import pytest

from vlmpress_services.errors import InvalidRequestError, WorkersDiedError
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.ray_runner import RayRunner


def count_running(folder: Path, index: int, number: int) -> int:
    """How many tasks are at work while this one is; the first ones wait until so many have begun."""
    mark, deadline_s = folder / f"running-{index}", time.monotonic() + 60
    mark.touch()
    (folder / f"begun-{index}").touch()
    while len(list(folder.glob("begun-*"))) < number:
        assert time.monotonic() < deadline_s, "tasks do not run beside each other"
        time.sleep(0.01)
    time.sleep(0.3)
    found = len(list(folder.glob("running-*")))
    mark.unlink()
    return found


def die(folder: Path, num_deaths: int) -> str:
    """Dies so many times before it ends well."""
    with (folder / "deaths").open("a") as file:
        file.write("x")
    if (folder / "deaths").stat().st_size <= num_deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def fail() -> None:
    raise InvalidRequestError("dataset: expected questions, got none")


def test_no_more_tasks_run_at_a_time_than_may(runner: RayRunner, tmp_path: Path) -> None:
    free, limited = tmp_path / "free", tmp_path / "limited"
    free.mkdir()
    limited.mkdir()
    # Without a limit; after it, there are as many idle workers.
    found = dict(runner.each(count_running, [(free, index, 3) for index in range(3)], TaskResources()))
    assert max(found.values()) == 3
    found = dict(runner.each(count_running, [(limited, index, 2) for index in range(6)], TaskResources(max_running=2)))
    assert sorted(found) == list(range(6))
    assert max(found.values()) == 2


@pytest.mark.parametrize(("num_deaths", "max_failures"), [(2, 2), (2, 1)])
def test_a_task_is_started_again_so_often(
    runner: RayRunner, tmp_path: Path, num_deaths: int, max_failures: int
) -> None:
    tasks = runner.each(die, [(tmp_path, num_deaths)], TaskResources(max_failures=max_failures))
    if num_deaths <= max_failures:
        assert list(tasks) == [(0, "done")]
    else:
        with pytest.raises(WorkersDiedError, match=r"^task: expected its workers to die at most 1 times, got one time"):
            list(tasks)
    assert (tmp_path / "deaths").read_text() == "x" * (max_failures + 1)


def test_what_a_task_raises_is_raised_here(runner: RayRunner) -> None:
    with pytest.raises(InvalidRequestError, match=r"^dataset: expected questions, got none$"):
        list(runner.each(fail, [()], TaskResources()))
