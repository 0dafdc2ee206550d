"""Time of training by stages against training without compression, at equal steps in one run."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from stagetrain.attaching.attachment import Attachment, attach
from stagetrain.loop.feature_cache import cache_vision_features
from stagetrain.schedules.schedule import Schedule
from stagetrain.schedules.setting import CompressionSetting

FEATURE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimizer step: of the clock, and of the processor (all threads)."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the schedule, each of its steps followed by one without compression.

    Attributes:
        stages: Steps of each stage.
        plain: As many steps without compression.
    """

    stages: tuple[tuple[StepTime, ...], ...]
    plain: tuple[StepTime, ...]


class StepTimer:
    """Optimizer steps of a model on one batch: forward, backward, clipping, AdamW.

    The vision tower does not train, and its features are kept: what is timed is the language model.

    Args:
        model: Trained in place.
        batch: What every step trains on.
    """

    def __init__(self, model: Any, batch: Mapping[str, torch.Tensor]) -> None:
        self._model = model.train()
        self._batch = dict(batch)
        self._attachment: Attachment = attach(model)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-5, fused=True)

    def compress(self, setting: CompressionSetting | None) -> None:
        """From the next step on; None: no compression."""
        if setting is None:
            self._attachment.clear()
        else:
            self._attachment.set(setting)

    def step(self) -> StepTime:
        """Makes one step."""
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self._model(**self._batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return StepTime(time.perf_counter() - begin, time.process_time() - begin_cpu)


def time_schedule(
    model: Any,
    batch: Mapping[str, torch.Tensor],
    schedule: Schedule,
    num_steps: int,
    num_rounds: int,
    on_round: Callable[[int, int], None] | None = None,
) -> list[Round]:
    """Times `num_rounds` runs of `num_steps` optimizer steps, staged and plain steps in turn.

    Whatever else the machine does falls on both alike. Steps before the first round, one a stage, are not timed.

    Raises:
        FeatureCacheError: The model's vision tower trains, or is of an unknown kind.
        ScheduleError: A stage is not possible for the model.
    """
    with cache_vision_features(model, FEATURE_BYTES):
        timer = StepTimer(model, batch)
        for stage in (*schedule.stages, None):
            timer.compress(None if stage is None else stage.compression)
            timer.step()
        rounds = []
        for number in range(num_rounds):
            rounds.append(_time_round(timer, schedule, num_steps))
            if on_round is not None:
                on_round(number + 1, num_rounds)
        timer.compress(None)
    return rounds


def _time_round(timer: StepTimer, schedule: Schedule, num_steps: int) -> Round:
    stages: list[list[StepTime]] = [[] for _ in schedule.stages]
    plain = []
    for step in range(num_steps):
        index = schedule.stage_index(step, num_steps)
        timer.compress(schedule.stages[index].compression)
        stages[index].append(timer.step())
        timer.compress(None)
        plain.append(timer.step())
    return Round(tuple(map(tuple, stages)), tuple(plain))


def summarize(rounds: list[Round], schedule: Schedule, tokens_per_step: int) -> dict[str, Any]:
    """JSON of all rounds: step times by stage, totals of a run, and what staging saves, in percent.

    Every figure has its best round ("min") and its "median" round.

    Args:
        rounds: What `time_schedule` gave.
        schedule: The schedule it ran.
        tokens_per_step: Input tokens of a batch, visual ones before any compression.
    """
    names = [_name(index, stage.compression) for index, stage in enumerate(schedule.stages)]
    of_stage = {name: [each.stages[index] for each in rounds] for index, name in enumerate(names)}
    steps = {
        name: _step_times(values) for name, values in {**of_stage, "plain": [each.plain for each in rounds]}.items()
    }
    totals = {
        "staged": [[step for stage in each.stages for step in stage] for each in rounds],
        "plain": [list(each.plain) for each in rounds],
    }
    run = {name: _extremes([_sum(each) for each in values]) for name, values in totals.items()}
    savings = [
        {clock: 100 * (1 - _sum(staged)[clock] / _sum(plain)[clock]) for clock in ("wall_s", "cpu_s")}
        for staged, plain in zip(totals["staged"], totals["plain"], strict=True)
    ]
    return {
        "rounds": len(rounds),
        "steps_per_run": len(rounds[0].plain),
        "step": {
            name: {**value, "tokens_per_s": tokens_per_step / value["min"]["wall_s"]} for name, value in steps.items()
        },
        "run": run,
        "saving_percent": {
            clock: {"of_min": _saving(run, "min", clock), "median": median(each[clock] for each in savings)}
            for clock in ("wall_s", "cpu_s")
        },
    }


def _name(index: int, setting: CompressionSetting | None) -> str:
    what = (
        "no compression" if setting is None else f"{setting.compressor}, layer {setting.layer}, stride {setting.stride}"
    )
    return f"stage {index + 1}: {what}"


def _step_times(rounds: list[tuple[StepTime, ...]]) -> dict[str, dict[str, float]]:
    """Of the mean step of each round; a stage without steps has none."""
    means = [{clock: value / len(steps) for clock, value in _sum(steps).items()} for steps in rounds if steps]
    return _extremes(means or [{"wall_s": float("nan"), "cpu_s": float("nan")}])


def _sum(steps: tuple[StepTime, ...] | list[StepTime]) -> dict[str, float]:
    return {"wall_s": sum(step.wall_s for step in steps), "cpu_s": sum(step.cpu_s for step in steps)}


def _extremes(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        "min": {clock: min(each[clock] for each in values) for clock in values[0]},
        "median": {clock: median(each[clock] for each in values) for clock in values[0]},
    }


def _saving(run: Mapping[str, dict[str, dict[str, float]]], which: str, clock: str) -> float:
    return 100 * (1 - run["staged"][which][clock] / run["plain"][which][clock])
