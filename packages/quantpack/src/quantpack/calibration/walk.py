"""Visits a model site by site in order of execution; what is visited later sees what was quantized before.

Inside a layer all sites are collected in one pass and visited from last to first. From last to first,
because a factor may have to be divided into the rows of an earlier linear layer of the same layer
(up_proj for down_proj), which only works before that one has its codes. One pass, because the sites of a
layer then cost one run of it, and what its own first half's rounding does to its second half is small
beside what all layers before did. `sequential_sites` collects again for each site, first to last, for
methods that correct errors; rows of a linear layer then cannot take a factor.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from quantpack.affine import QuantizedTensor
from quantpack.calibration.applying import Applier, Visit
from quantpack.calibration.collecting import Collector
from quantpack.calibration.folding import SiteOps
from quantpack.calibration.planning import Plan, make_plan, name_of, scheduled_sites
from quantpack.calibration.proving import proven_sites
from quantpack.calibration.running import calm
from quantpack.calibration.samples import Sample, read_samples
from quantpack.calibration.stacks import Answer, Recorder, Replay, Stack, Traversal
from quantpack.calibration.tokens import visual_token_ids
from quantpack.progress import OnProgress
from quantpack.scheme import Scheme

# Keeps the parameters of these names in memory inside the context.
Hold = Callable[[Iterable[str]], AbstractContextManager[None]]
# Takes what has become of a parameter: codes, or a folded norm or bias.
Store = Callable[[str, "QuantizedTensor | Tensor"], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkReport:
    """What a walk did.

    Attributes:
        visited: Names of the weights that were quantized, in the order of visits.
        unreached: Names in `schemes` that no calibration token came to, or that are no linear layer's:
            unchanged, for the caller to quantize without activations.
    """

    visited: tuple[str, ...]
    unreached: tuple[str, ...]


def walk(
    model: nn.Module,
    calibration: Iterable[Sample],
    visit: Visit,
    *,
    schemes: Mapping[str, Scheme],
    needs_second_moment: bool = False,
    sequential_sites: bool = False,
    visual_weights: Mapping[str, float] | None = None,
    hold: Hold | None = None,
    store: Store | None = None,
    on_progress: OnProgress | None = None,
) -> WalkReport:
    """Quantizes a model in place, each site on the activations that the quantized part before it makes.

    Args:
        model: Any; layer stacks are module lists. Gets dequantized weights in its own dtype. Its modes,
            and hooks that are not its own, are as before afterwards, also after an error.
        calibration: Keyword arguments of the model's forward, one dict for each sample; batches of any
            length, with or without images. All are kept in memory.
        visit: Makes the codes of a site.
        schemes: The weights to quantize, by parameter name.
        needs_second_moment: Gives `visit` the second moments too.
        sequential_sites: See above.
        visual_weights: `Site.visual_weight` by the weight's name (`gradients.visual_weights`).
        hold: For a model whose weights are elsewhere (`streaming.StreamedModel.hold`).
        store: Called for each tensor that has changed, before a streamed layer is given up.
        on_progress: Called after each weight.

    Raises:
        CalibrationError: Samples that are no forward arguments, activations that are not finite, or an
            answer of `visit` that does not fit its site; names sample or weight. All samples have gone
            through the model once, layers left out, before anything is changed.
    """
    samples = read_samples(calibration)
    hold = hold or (lambda _names: nullcontext())
    with calm(model):
        plan = make_plan(model, samples, schemes.keys(), hold)
        applier = Applier(model, visit, schemes, visual_weights or {}, store, on_progress)
        _Walk(plan, applier, schemes, hold, second_moment=needs_second_moment, sequential=sequential_sites).run()
    visited = tuple(applier.visited)
    return WalkReport(visited=visited, unreached=tuple(sorted(schemes.keys() - set(visited))))


class _Walk:
    def __init__(
        self,
        plan: Plan,
        applier: Applier,
        schemes: Mapping[str, Scheme],
        hold: Hold,
        *,
        second_moment: bool,
        sequential: bool,
    ) -> None:
        self._plan = plan
        self._runner = plan.runner
        self._applier = applier
        self._schemes = schemes
        self._hold = hold
        self._second_moment = second_moment
        self._sequential = sequential
        self._visual_ids = visual_token_ids(plan.runner.model)
        # What each sample did in each stack already walked.
        self._done: dict[str, dict[int, list[Traversal]]] = {}
        # Whether the op before a site takes a factor, by stack, class of the layer and the site's place in it.
        self._proven: dict[tuple[str, type[nn.Module], str], bool] = {}

    def run(self) -> None:
        for part in self._plan.order:
            if isinstance(part, Stack):
                self._walk_stack(part)
            else:
                with self._hold(self._plan.outside):
                    self._walk_loose(part)

    def _users(self, name: str) -> list[int]:
        return [number for number, names in enumerate(self._plan.runs) if name in names]

    def _answers(self, number: int) -> dict[str, Answer]:
        """Stacks already walked give what they gave; the run ends at the next one."""
        stacks = {stack.name: stack for stack in self._runner.stacks}
        return {name: Replay(stacks[name], done[number]) for name, done in self._done.items() if number in done}

    def _walk_loose(self, ops: SiteOps) -> None:
        first = self._users(name_of(ops))[0]
        (proven,) = proven_sites([ops], lambda: self._come_through(first))
        collector = self._collector([proven])
        for number in self._users(name_of(ops)):
            collector.begin(number, self._runner.samples[number])
            self._runner.run(number, self._answers(number), collector.read)
        for each, activations in collector.results():
            self._applier.apply(each, activations)
        self._applier.store_folded()

    def _come_through(self, number: int) -> list[Tensor]:
        """What enters the stacks not walked yet, and the end of the run with placeholders from them."""
        entered: list[Tensor] = []
        answers = self._answers(number)
        for stack in self._runner.stacks:
            if stack.name not in answers:
                answers[stack.name] = Recorder(stack, on_enter=entered.append)
        reached = self._runner.run(number, answers)
        return entered + reached

    def _walk_stack(self, stack: Stack) -> None:
        traversals: dict[int, list[Traversal]] = {}
        with self._hold(self._plan.outside):
            for number in self._users(stack.name):
                recorder = Recorder(stack)
                self._runner.run(number, {**self._answers(number), stack.name: recorder})
                traversals[number] = recorder.traversals
        for index, layer in enumerate(stack.layers):
            prefix = f"{stack.name}.{index}."
            with self._hold(prefix + name for name, _ in layer.named_parameters()):
                self._walk_layer(stack, index, traversals)
        for each in traversals.values():
            for traversal in each:
                traversal.calls.clear()
        self._done[stack.name] = traversals

    def _walk_layer(self, stack: Stack, index: int, traversals: Mapping[int, list[Traversal]]) -> None:
        layer = stack.layers[index]
        passes = [(n, each) for n, all_of_n in traversals.items() for each in all_of_n if index < len(each.calls)]
        if not passes:
            return
        sites = self._proven_in_layer(stack, index, lambda: [_state_after(layer, index, passes[0][1])])
        for group in self._groups(sites, layer, index, passes):
            collector = self._collect(group, layer, index, passes)
            for ops, activations in reversed(collector.results()):
                self._applier.apply(ops, activations)
        self._applier.store_folded()
        read = self._plan.read_outputs[stack.name]
        if index == len(stack.layers) - 1 and index not in read:
            return
        for _, traversal in passes:
            traversal.state = _state_after(layer, index, traversal)
            if index in read:
                traversal.outputs[index] = traversal.state

    def _groups(
        self, sites: tuple[SiteOps, ...], layer: nn.Module, index: int, passes: list[tuple[int, Traversal]]
    ) -> Iterator[list[SiteOps]]:
        """Sites to collect together."""
        if not self._sequential:
            yield list(sites)
            return
        order = self._collect(sites, layer, index, passes[:1], second_moment=False).results()
        for ops, _ in order:
            yield [ops]

    def _collect(
        self,
        sites: Iterable[SiteOps],
        layer: nn.Module,
        index: int,
        passes: list[tuple[int, Traversal]],
        *,
        second_moment: bool | None = None,
    ) -> Collector:
        collector = self._collector(list(sites), second_moment)
        with collector.watching():
            for number, traversal in passes:
                collector.begin(number, self._runner.samples[number])
                _state_after(layer, index, traversal)
        return collector

    def _collector(self, sites: list[SiteOps], second_moment: bool | None = None) -> Collector:
        wanted = self._second_moment if second_moment is None else second_moment
        return Collector(sites, second_moment=wanted, visual_ids=self._visual_ids)

    def _proven_in_layer(self, stack: Stack, index: int, run: Callable[[], list[Tensor]]) -> tuple[SiteOps, ...]:
        """Layers of one stack and class are built alike, so one of them is tried."""
        layer, prefix = stack.layers[index], f"{stack.name}.{index}."
        sites = scheduled_sites(layer, self._schemes.keys(), prefix)
        keys = {name_of(ops): (stack.name, type(layer), name_of(ops).removeprefix(prefix)) for ops in sites}
        untried = [ops for ops in sites if ops.before is not None and keys[name_of(ops)] not in self._proven]
        for ops in proven_sites(untried, run):
            self._proven[keys[name_of(ops)]] = ops.before is not None
        return tuple(
            ops if ops.before is None or self._proven[keys[name_of(ops)]] else SiteOps(linears=ops.linears, before=None)
            for ops in sites
        )


def _state_after(layer: nn.Module, index: int, traversal: Traversal) -> Tensor:
    args, kwargs = traversal.arguments(index)
    output = layer(*args, **kwargs)
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state
