"""The loop of every phase: micro-batches, one optimizer step, history, checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from verbdistill.config import DistillConfig
from verbdistill.errors import NonFiniteLossError
from verbdistill.loop.checkpointing import Checkpoints, restore_parameters
from verbdistill.loop.optimizing import Updater
from verbdistill.loop.ranks import equalize, sum_gradients, summed
from verbdistill.loop.seeding import seed_of

OnProgress = Callable[[str, int, int, float], None]
"""Called after each optimizer step: phase, steps done in it, its steps, loss (nats, or the operation's unit)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is.

    Attributes:
        phase: One of `PHASES`.
        step: Optimizer step of the phase, 0-based.
        indices: Micro-batches of the step.
    """

    phase: str
    step: int
    indices: range


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the micro-batches of a step gave in this process.

    Attributes:
        sums: Losses summed over response tokens, float64 [micro-batches, terms] on the CPU.
        num_tokens: Response tokens of all of them.
        match: 0-based teacher targets of each student target, the same in every process.
    """

    sums: Tensor
    num_tokens: int
    match: list[list[int]] = field(default_factory=list)


Work = Callable[[Place], Outcome]
"""Leaves in `.grad` the gradient of the sum over micro-batches and terms, not divided by anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase to run.

    Attributes:
        name: One of `PHASES`.
        first_index: Its first micro-batch.
        num_steps: Optimizer steps.
        peak_lr: Learning rate behind the warmup.
        modules: What trains, by name; parameters without requires_grad are left out.
        groups: Parameters that are clipped together.
    """

    name: str
    first_index: int
    num_steps: int
    peak_lr: float
    modules: Mapping[str, nn.Module]
    groups: Sequence[Sequence[nn.Parameter]]


@dataclass(kw_only=True, slots=True)
class History:
    """Of every step done.

    Attributes:
        terms: Mean of every term over the response tokens.
        matches: As in `Outcome`.
    """

    terms: list[list[float]] = field(default_factory=list)
    matches: list[list[list[int]]] = field(default_factory=list)


def train(
    phase: Phase, work: Work, config: DistillConfig, checkpoints: Checkpoints, on_progress: OnProgress | None
) -> History:
    """Runs a phase, or the rest of it where a checkpoint holds its beginning.

    The gradient of a step is that of the mean over all response tokens of all its micro-batches in all processes,
    so that neither their number nor how rows are spread over them matters.

    Raises:
        NonFiniteLossError: A loss or a gradient became NaN or infinite: says the phase, the step and the micro-batch.
            Parameters and checkpoints are as after the step before.
    """
    updater = Updater(phase.groups, num_steps=phase.num_steps, peak_lr=phase.peak_lr, config=config)
    equalize(updater.parameters)
    done, history = _resume(phase, updater, checkpoints)
    for step in range(done, phase.num_steps):
        first = phase.first_index + step * config.accumulation_steps
        place = Place(phase.name, step, range(first, first + config.accumulation_steps))
        updater.zero()
        outcome = work(place)
        totals = summed(outcome.sums)
        check_finite(totals.sum(1), place)
        num_tokens = int(summed(torch.tensor(outcome.num_tokens)))
        sum_gradients(updater.parameters)
        updater.scale(1 / num_tokens)
        norm = updater.clip()
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"{phase.name}: expected finite gradients at step {step} (micro-batches {first} to "
                f"{place.indices[-1]}), got a norm of {norm}"
            )
        updater.step(step)
        history.terms.append((totals.sum(0) / num_tokens).tolist())
        if outcome.match:
            history.matches.append(outcome.match)
        if config.save_steps and (step + 1) % config.save_steps == 0 and step + 1 < phase.num_steps:
            _save(step + 1, phase, updater, history, checkpoints)
        if on_progress is not None:
            on_progress(phase.name, step + 1, phase.num_steps, sum(history.terms[-1]))
    updater.zero()
    return history


def check_finite(losses: Tensor, place: Place) -> None:
    """Raises NonFiniteLossError unless the loss of every micro-batch, [micro-batches], is finite."""
    for index, value in zip(place.indices, losses.tolist(), strict=True):
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{place.phase}: expected a finite loss at step {place.step} (micro-batch {index}), got {value}"
            )


def begin_micro_batch(config: DistillConfig, place: Place, index: int) -> None:
    """Seeds what dropout draws from, to be called before the student reads a micro-batch."""
    torch.manual_seed(seed_of(config.seed, place.phase, index))


def _trained(phase: Phase) -> dict[str, dict[str, Tensor]]:
    return {
        name: {key: value.detach() for key, value in module.named_parameters() if value.requires_grad}
        for name, module in phase.modules.items()
    }


def _save(done: int, phase: Phase, updater: Updater, history: History, checkpoints: Checkpoints) -> None:
    state = {"terms": history.terms, "matches": history.matches}
    checkpoints.save_step(done, {**_trained(phase), "optimizer": updater.state()}, state)


def _resume(phase: Phase, updater: Updater, checkpoints: Checkpoints) -> tuple[int, History]:
    saved = checkpoints.last_step()
    if saved is None:
        return 0, History()
    for name, values in _trained(phase).items():
        restore_parameters(values, saved.tensors.get(name, {}), f"{saved.where}: {name}")
    updater.restore(saved.tensors.get("optimizer", {}))
    return saved.done, History(terms=saved.state["terms"], matches=saved.state["matches"])
