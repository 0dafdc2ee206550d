"""What of a model is calibrated, and in which order: found by letting every sample through, layers left out."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantpack.calibration.folding import SiteOps, find_sites
from quantpack.calibration.running import Runner, module_from
from quantpack.calibration.samples import Sample
from quantpack.calibration.stacks import NotAChainError, Recorder, Stack, find_stacks
from quantpack.errors import CalibrationError


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The order of a walk.

    Attributes:
        runner: The model, its samples and its stacks.
        order: Stacks, and sites outside them, in order of execution.
        runs: For each sample, what of `order` it runs, by name: a text-only one leaves the tower out.
        read_outputs: By the name of a stack: the layers whose output later parts of the order read.
        outside: Names of the parameters outside the stacks and the output head.
    """

    runner: Runner
    order: tuple[Stack | SiteOps, ...]
    runs: tuple[frozenset[str], ...]
    read_outputs: Mapping[str, frozenset[int]]
    outside: tuple[str, ...]


def name_of(part: Stack | SiteOps) -> str:
    """Of a stack its own, of a site that of its first linear layer."""
    return part.name if isinstance(part, Stack) else next(iter(part.linears))


def scheduled_sites(root: nn.Module, weights: Collection[str], prefix: str = "") -> tuple[SiteOps, ...]:
    """Sites below `root`, cut down to the linear layers whose weight is in `weights`.

    A layer that stays as it is cannot take its part of a factor, so its site loses the op before.
    """
    sites = []
    for ops in find_sites(root, prefix):
        linears = {name: linear for name, linear in ops.linears.items() if f"{name}.weight" in weights}
        if linears:
            before = ops.before if len(linears) == len(ops.linears) else None
            sites.append(SiteOps(linears=linears, before=before))
    return tuple(sites)


def make_plan(
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Collection[str],
    hold: Callable[[Iterable[str]], AbstractContextManager[None]],
) -> Plan:
    """Runs every sample through the model with its layer stacks answered for by placeholders.

    Args:
        model: Calm; nothing of it is changed.
        samples: At least one.
        weights: Names of the weights to quantize.
        hold: Keeps parameters in memory; see `walk`.

    Raises:
        CalibrationError: The model's forward does not take a sample; nothing has been changed.
    """
    sites = scheduled_sites(model, weights)
    linears = [name for ops in sites for name in ops.linears]
    excluded: set[str] = set()
    while True:
        stacks = find_stacks(model, linears, excluded)
        loose = [ops for ops in sites if not any(name_of(ops).startswith(f"{stack.name}.") for stack in stacks)]
        runner = Runner(model, samples, stacks, {name: each for ops in loose for name, each in ops.linears.items()})
        outside = _outside(runner)
        with hold(outside):
            try:
                sequences = [_parts_of_run(runner, number, loose) for number in range(len(samples))]
            except NotAChainError as error:
                excluded.add(str(error))
                continue
            parts: dict[str, Stack | SiteOps] = {stack.name: stack for stack in stacks}
            parts |= {name_of(ops): ops for ops in loose}
            order = tuple(parts[name] for name in _merged(sequences))
            runs = tuple(frozenset(sequence) for sequence in sequences)
            read = _read_outputs(runner, order, runs)
        return Plan(runner=runner, order=order, runs=runs, read_outputs=read, outside=outside)


def _outside(runner: Runner) -> tuple[str, ...]:
    """What a run needs when all stacks are answered for."""
    in_head = {id(param) for param in runner.head.parameters()} if runner.head is not None else set()
    embeddings = module_from(runner.model, "get_input_embeddings")
    if embeddings is not None:
        # A tied head is the embeddings.
        in_head -= {id(param) for param in embeddings.parameters()}
    return tuple(
        name
        for name, param in runner.model.named_parameters()
        if id(param) not in in_head and not any(name.startswith(f"{stack.name}.") for stack in runner.stacks)
    )


def _parts_of_run(runner: Runner, number: int, loose: Sequence[SiteOps]) -> list[str]:
    """Names of what one sample runs, a site at the place of the last of its linear layers to be called first."""
    site_of = {name: name_of(ops) for ops in loose for name in ops.linears}
    called: list[str] = []
    parts: list[str] = []

    def on_linear(name: str, _tokens: Tensor) -> None:
        if name not in called:
            called.append(name)
            if site_of[name] in parts:
                parts.remove(site_of[name])
            parts.append(site_of[name])

    answers = {}
    for stack in runner.stacks:

        def on_enter(_state: Tensor, name: str = stack.name) -> None:
            if name not in parts:
                parts.append(name)

        answers[stack.name] = Recorder(stack, run_first=stack.layers[0].forward, on_enter=on_enter)
    runner.run(number, answers, on_linear)
    return parts


def _merged(sequences: Sequence[Sequence[str]]) -> list[str]:
    """One order of all names: what only a later sequence has stands after what precedes it there."""
    merged: list[str] = []
    for sequence in sequences:
        known = [name for name in sequence if name in merged]
        place = merged.index(known[0]) if known else len(merged)
        for name in sequence:
            if name in merged:
                place = merged.index(name) + 1
            else:
                merged.insert(place, name)
                place += 1
    return merged


def _read_outputs(
    runner: Runner, order: Sequence[Stack | SiteOps], runs: Sequence[frozenset[str]]
) -> dict[str, frozenset[int]]:
    read: dict[str, frozenset[int]] = {}
    for stack in runner.stacks:
        users = [number for number, names in enumerate(runs) if stack.name in names]
        if not users or name_of(order[-1]) == stack.name:
            read[stack.name] = frozenset()
            continue
        last = len(stack.layers) - 1
        others = frozenset(range(last))
        found = {last}
        if others and _reaches_later(runner, users[0], stack, others):
            found = {index for index in range(last + 1) if _reaches_later(runner, users[0], stack, frozenset({index}))}
        read[stack.name] = frozenset(found)
    return read


def _reaches_later(runner: Runner, number: int, stack: Stack, poisoned: frozenset[int]) -> bool:
    """True when NaN in the outputs of some layers comes to another part of the model."""
    seen = False

    def look(tokens: Tensor) -> None:
        nonlocal seen
        seen = seen or bool(torch.isnan(tokens).any())

    answers = {
        other.name: Recorder(other, on_enter=look) if other is not stack else Recorder(other, poisoned=poisoned)
        for other in runner.stacks
    }
    try:
        runner.run(number, answers, lambda _name, tokens: look(tokens))
    except CalibrationError:
        # The model's own code stumbled over the NaN, so it had come there.
        return True
    return seen
