"""How many processes share a run, and where it lies; imports no Ray."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vlmpress_services.errors import InvalidRequestError

# What a training function reports is between it and who started it.
OnReport = Callable[..., None]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerGroup:
    """Workers of one run.

    Attributes:
        num_workers: How many.
        storage: Folder that every worker can reach; the run's lock and Ray's notes on it lie there.
        name: Of the run.
        max_failures: How often the workers are started again after one of them died.
        use_gpu: One GPU each; None: if the cluster has that many.
        cpus_per_worker: Cores and torch threads of each.

    Raises:
        InvalidRequestError: A number is out of its range.
    """

    num_workers: int
    storage: Path
    name: str
    max_failures: int = 3
    use_gpu: bool | None = None
    cpus_per_worker: int = 1

    def __post_init__(self) -> None:
        _check("num_workers", self.num_workers, 1)
        _check("max_failures", self.max_failures, 0)
        _check("cpus_per_worker", self.cpus_per_worker, 1)

    @property
    def lock(self) -> Path:
        """File that the process of rank 0 holds locked while it trains."""
        return self.storage / f"{self.name}.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResources:
    """What each of many independent tasks gets.

    Attributes:
        cpus: Cores, and torch threads, of which there is one at least.
        gpus: GPUs, or a share of one.
        max_failures: How often a task is started again after its worker or node died.
        max_running: Tasks at a time; None: as many as the cluster has room for.

    Raises:
        InvalidRequestError: A number is out of its range.
    """

    cpus: float = 1
    gpus: float = 0
    max_failures: int = 10
    max_running: int | None = None

    def __post_init__(self) -> None:
        _check("cpus", self.cpus, 0)
        _check("gpus", self.gpus, 0)
        _check("max_failures", self.max_failures, 0)
        if self.max_running is not None:
            _check("max_running", self.max_running, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherGroup:
    """Teachers of one run.

    Attributes:
        num_teachers: How many processes hold the teacher.
        max_restarts: How often each is started again after it died.
        use_gpu: One GPU each; None: if the cluster has enough for the workers too.
        cpus_per_teacher: Cores of each, and torch threads, of which there is one at least.

    Raises:
        InvalidRequestError: A number is out of its range.
    """

    num_teachers: int
    max_restarts: int = 3
    use_gpu: bool | None = None
    cpus_per_teacher: float = 0.5

    def __post_init__(self) -> None:
        _check("num_teachers", self.num_teachers, 1)
        _check("max_restarts", self.max_restarts, 0)
        _check("cpus_per_teacher", self.cpus_per_teacher, 0)

    @property
    def num_cpus(self) -> float:
        """Cores of all of them."""
        return self.num_teachers * self.cpus_per_teacher


def _check(name: str, value: float, least: int) -> None:
    if value < least:
        raise InvalidRequestError(f"{name}: expected at least {least}, got {value}")
