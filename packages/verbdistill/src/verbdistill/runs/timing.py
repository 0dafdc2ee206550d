"""What interaction costs on a machine, beside distillation of the last layer alone."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.data.batches import Batches
from verbdistill.models.states import IGNORED
from verbdistill.steps.interaction import interact
from verbdistill.steps.student_targets import SPEAKING
from verbdistill.steps.teaching import TAUGHT, local_teacher
from verbdistill.steps.verbalization import new_verbalizers, target_layers
from verbdistill.teachers.placing import as_pair, device_of
from verbdistill.verbalizers.verbalizers import Verbalizers

_WARM = 2
_TURNS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Medians over whole optimizer steps.

    Attributes:
        response_share: Response tokens of all tokens of the student's micro-batches.
        last_layer_ms: Of a step that compares the last layer's KL alone.
        interaction_ms: Of a step as configured.
    """

    response_share: float
    last_layer_ms: float
    interaction_ms: float

    @property
    def ratio(self) -> float:
        """How many times as long as the last layer alone."""
        return self.interaction_ms / self.last_layer_ms


def step_times(
    teacher: nn.Module,
    student: nn.Module,
    batches: Batches,
    config: DistillConfig,
    *,
    num_steps: int,
    words: tuple[Tensor, Tensor] | None = None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> StepTimes:
    """Times of interaction steps, with verbalizers that were not trained: time does not depend on what they know.

    The two kinds go in turns, so that a busy machine slows both alike. The student is trained in place and is
    worth nothing afterwards.

    Args:
        teacher: The teacher.
        student: The student.
        batches: Micro-batches; the first few of them are used.
        config: What a step does.
        num_steps: Steps that are timed of each kind in each of three turns.
        words: As of `interact`.
        clock_s: Seconds; `time.process_time` counts the CPU's alone.
    """
    kinds = {"last": dataclasses.replace(config, intermediate="none", last="kl"), "interaction": config}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(_TURNS):
        for name, kind in kinds.items():
            told = dataclasses.replace(
                kind, num_verbalization_steps=0, num_interaction_steps=_WARM + num_steps, num_sft_steps=0
            )
            asked = local_teacher(teacher, told, _untrained(teacher, told, "teacher", TAUGHT))
            watch = _Watch(device_of(student), clock_s)
            interact(
                asked,
                student,
                _untrained(student, told, "student", SPEAKING),
                batches,
                told,
                words=words,
                on_progress=watch,
            )
            found[name] += watch.times_ms[_WARM:]
    labels = as_pair(batches(0)).student["labels"]
    return StepTimes(
        response_share=float((labels != IGNORED).float().mean()),
        last_layer_ms=statistics.median(found["last"]),
        interaction_ms=statistics.median(found["interaction"]),
    )


class _Watch:
    """A progress function that times the steps."""

    def __init__(self, device: torch.device, clock_s: Callable[[], float]) -> None:
        self.times_ms: list[float] = []
        self._device = device
        self._clock_s = clock_s
        self._last_s = clock_s()

    def __call__(self, *_progress: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now_s = self._clock_s()
        self.times_ms.append((now_s - self._last_s) * 1e3)
        self._last_s = now_s


def _untrained(model: nn.Module, config: DistillConfig, role: str, operations: tuple[str, ...]) -> Verbalizers | None:
    if config.intermediate not in operations:
        return None
    return new_verbalizers(model, target_layers(model, config, role), config, role)
