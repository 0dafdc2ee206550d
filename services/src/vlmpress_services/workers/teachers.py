"""Teachers in processes of their own that answer students ahead of their steps.

A student that takes a step has its next answers made meanwhile, so a step of both takes as long as the slower of the
two. Ray starts a teacher that died anew and asks it again what it had been asked; an answer depends on its
micro-batch alone, so nobody sees a difference.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from torch import Tensor, device

from verbdistill.losses.heads import Head
from verbdistill.teachers.teacher import TeacherAnswer, TruncatedAnswer
from vlmpress_services.errors import InvalidRequestError, WorkersDiedError
from vlmpress_services.workers.group import TeacherGroup, WorkerGroup
from vlmpress_services.workers.reporting import result
from vlmpress_services.workers.tensors import packed, unpacked

FOREVER = -1


class OpenTeacher(Protocol):
    """A teacher with what it needs to make its own micro-batches."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers."""

    @property
    def head(self) -> Head:
        """The language head that reads its answers' features."""

    @property
    def fingerprint(self) -> str:
        """Changes with its weights."""

    def answer(self, index: int, rank: int, world_size: int) -> TeacherAnswer | TruncatedAnswer:
        """What it says of the part that one of `world_size` workers has of a micro-batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherPool:
    """Running teachers; can be sent to the workers that ask them.

    Attributes:
        actors: Their handles.
        max_restarts: How often each is started again.
    """

    actors: tuple[Any, ...]
    max_restarts: int


class _TeacherProcess:
    """Opens its teacher when it is first asked: an error on purpose then reaches who asked, as it is."""

    def __init__(self, open_teacher: Callable[..., OpenTeacher], arguments: tuple[Any, ...], num_threads: int) -> None:
        self._open, self._arguments, self._num_threads = open_teacher, arguments, num_threads
        self._teacher: OpenTeacher | None = None

    def describe(self) -> Any:
        """Target layers, language head and fingerprint."""
        teacher = self._opened()
        return teacher.layers, packed(teacher.head), teacher.fingerprint

    def answer(self, index: int, rank: int, world_size: int) -> Any:
        """The packed answer."""
        return packed(self._opened().answer(index, rank, world_size))

    def _opened(self) -> OpenTeacher:
        if self._teacher is None:
            import torch

            # As in a run without Ray: sums in another order would be another result.
            torch.set_num_threads(self._num_threads)
            # As Ray Train tells its workers; a process that was given no GPU may still see those of others.
            has_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cuda" if has_gpu else "cpu"
            self._teacher = self._open(*self._arguments)
        return self._teacher


class RemoteTeacher:
    """A verbdistill `Teacher` whose answers are made elsewhere, ahead of the steps that need them.

    Attributes:
        waited_s: How long `answer` has waited, all calls together.
    """

    def __init__(
        self, pool: TeacherPool, *, end: int, rank: int = 0, world_size: int = 1, device: device | str = "cpu"
    ) -> None:
        """Asks the first teacher for its layers and its head.

        Args:
            pool: Whom to ask.
            end: Index behind the last micro-batch that will be asked for.
            rank: Which worker asks.
            world_size: Of how many.
            device: Where answers go.

        Raises:
            WorkersDiedError: The teacher dies whenever it is started.
        """
        self._pool, self._end, self._rank, self._world_size, self._device = pool, end, rank, world_size, device
        # Every teacher is at work for its share of the workers, and one answer more lies ready.
        self._num_ahead = -(-len(pool.actors) // world_size) + 1
        self._asked: dict[int, tuple[Any, Any]] = {}
        # Workers begin with different teachers; who was asked last stands last.
        first = rank % len(pool.actors)
        self._queue = [*pool.actors[first:], *pool.actors[:first]]
        self.waited_s = 0.0
        layers, head, fingerprint = self._result(self._queue[0].describe.remote())
        self._layers: tuple[int, ...] = layers
        self._head: Head = unpacked(head, device)
        self._fingerprint: str = fingerprint

    @property
    def layers(self) -> tuple[int, ...]:
        """Target layers, 1-based, ascending."""
        return self._layers

    @property
    def head(self) -> Head:
        """The teacher's language head."""
        return self._head

    @property
    def fingerprint(self) -> str:
        """The teacher's."""
        return self._fingerprint

    def answer(self, index: int, batch: Mapping[str, Tensor]) -> TeacherAnswer | TruncatedAnswer:
        """What the teacher says of a micro-batch, which it makes itself; begins the ones that follow.

        Raises:
            WorkersDiedError: A teacher died more often than the group allows.
        """
        wanted = range(index, min(index + self._num_ahead, max(self._end - 1, index)) + 1)
        self._asked = {number: asked for number, asked in self._asked.items() if number in wanted}
        for number in wanted:
            if number not in self._asked:
                actor = self._idlest()
                self._asked[number] = (actor, actor.answer.remote(number, self._rank, self._world_size))
        _, reference = self._asked.pop(index)
        began_s = time.monotonic()
        found = self._result(reference)
        self.waited_s += time.monotonic() - began_s
        answer: TeacherAnswer | TruncatedAnswer = unpacked(found, self._device)
        return answer

    def _idlest(self) -> Any:
        """The teacher that has least to do for this worker, of those the one it has not asked for longest."""
        pending: list[Any] = []
        if self._asked:
            references = [reference for _, reference in self._asked.values()]
            # Also begins to bring finished answers to this machine.
            done, _ = ray.wait(references, num_returns=len(references), timeout=0)
            pending = [actor for actor, reference in self._asked.values() if reference not in done]
        actor = min(self._queue, key=pending.count)
        self._queue.remove(actor)
        self._queue.append(actor)
        return actor

    def _result(self, reference: Any) -> Any:
        try:
            return result(reference)
        except ray.exceptions.RayActorError as error:
            raise WorkersDiedError(
                f"teachers: expected each to die at most {self._pool.max_restarts} times, got once more"
            ) from error


@contextmanager
def teacher_pool(
    open_teacher: Callable[..., OpenTeacher], *arguments: Any, group: TeacherGroup
) -> Iterator[TeacherPool]:
    """Teachers for the length of a block; needs a cluster.

    Args:
        open_teacher: Of an importable module; called with `arguments` in every process, and again in one that
            replaces another.
        arguments: Picklable.
        group: The teachers.
    """
    process: Any = ray.remote(_TeacherProcess).options(
        num_cpus=group.cpus_per_teacher,
        num_gpus=1 if group.use_gpu else 0,
        max_restarts=group.max_restarts,
        max_task_retries=FOREVER,
    )
    num_threads = max(1, int(group.cpus_per_teacher))
    actors = tuple(process.remote(open_teacher, arguments, num_threads) for _ in range(group.num_teachers))
    try:
        yield TeacherPool(actors=actors, max_restarts=group.max_restarts)
    finally:
        for actor in actors:
            ray.kill(actor)


def placed(teachers: TeacherGroup, students: WorkerGroup) -> tuple[TeacherGroup, WorkerGroup]:
    """Both groups as the cluster can hold them side by side; Ray would wait for ever for what it does not have.

    With `use_gpu` None on both sides every process has a GPU of its own if there are that many, else none has.

    Raises:
        InvalidRequestError: There are too few cores or GPUs.
    """
    there = ray.cluster_resources()
    enough = there.get("GPU", 0) >= teachers.num_teachers + students.num_workers
    if teachers.use_gpu is None:
        teachers = replace(teachers, use_gpu=enough)
    if students.use_gpu is None:
        students = replace(students, use_gpu=enough)
    cores = teachers.num_cpus + students.num_workers * students.cpus_per_worker
    gpus = teachers.num_teachers * bool(teachers.use_gpu) + students.num_workers * bool(students.use_gpu)
    for name, needed in (("CPU", cores), ("GPU", gpus)):
        if there.get(name, 0) < needed:
            raise InvalidRequestError(
                f"num_workers, num_teachers: expected a cluster of {needed:g} {name}, got {there.get(name, 0):g}"
            )
    return teachers, students
