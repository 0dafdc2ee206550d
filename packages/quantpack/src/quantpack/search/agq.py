"""The AGQ search: every matrix as coarse as a floor of the model's accuracy lets it be (ECM section 3.2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from quantpack.affine import dequantize
from quantpack.calibration.sites import Site
from quantpack.errors import SearchError
from quantpack.progress import OnProgress
from quantpack.scheme import Scheme
from quantpack.search.candidates import AgqSpace, Candidate, candidates, quantize_one, total_size

# Accuracy of the model with these weights, by name, in the place of its own; the others stay as they are.
Evaluate = Callable[[Mapping[str, Tensor]], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One step of the search.

    Attributes:
        changed: Matrices made coarser than in the state before.
        cr_codes: The paper's compression ratio of all matrices of the search, as tried.
        bits_per_weight: Of the same, with scales and zeros.
        accuracy: What the caller's function said.
        accepted: True where the floor held and the state was kept.
    """

    changed: tuple[str, ...]
    cr_codes: float
    bits_per_weight: float
    accuracy: float
    accepted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AgqResult:
    """What was chosen, and the path to it.

    Attributes:
        schemes: Of each matrix.
        floor: The accuracy that had to hold.
        trials: In order; the first is the start with groups everywhere.
    """

    schemes: Mapping[str, Scheme]
    floor: float
    trials: tuple[Trial, ...]

    @property
    def final(self) -> Trial:
        """The last state that held."""
        return [trial for trial in self.trials if trial.accepted][-1]


def search_agq(
    sites: Sequence[Site],
    evaluate: Evaluate,
    floor: float,
    space: AgqSpace | None = None,
    on_progress: OnProgress | None = None,
) -> AgqResult:
    """Makes matrices coarser, step by step, while `evaluate` gives at least `floor`.

    Each matrix has its layouts in order from fine to coarse (`candidates`). In each round every matrix
    that still can takes one step, all at once; where the floor breaks, each half of them is tried, and
    so on; a single matrix that breaks it stays where it is for good. So the number of
    evaluations grows with the number of matrices that matter, not with that of all.

    Args:
        sites: The matrices, with what they read.
        evaluate: The caller's accuracy, for example of a task; more is better.
        floor: ACC, the least accuracy that is acceptable.
        space: The layouts.
        on_progress: Called after each evaluation with the matrices settled, all of them, and what was tried.

    Raises:
        SearchError: There is no matrix, or the start, groups everywhere, is below the floor already.
    """
    where = {name: site for site in sites for name in site.weights}
    if not where:
        raise SearchError("AGQ: expected at least one matrix to search, got none")
    state = _State(where, {name: candidates(site, name, space or AgqSpace()) for name, site in where.items()}, evaluate)
    if not state.attempt((), floor):
        raise SearchError(
            f"AGQ: expected an accuracy of at least {floor:.4f}, groups of {(space or AgqSpace()).group_size} "
            f"everywhere give {state.trials[0].accuracy:.4f}"
        )
    active = [name for name in where if state.can_step(name)]
    while active:
        _advance(state, state.cheapest_first(active), floor, on_progress, len(where))
        active = [name for name in active if name not in state.frozen and state.can_step(name)]
    chosen = {name: state.at(name).scheme for name in where}
    return AgqResult(schemes=chosen, floor=floor, trials=tuple(state.trials))


@dataclass(slots=True)
class _State:
    sites: Mapping[str, Site]
    layouts: Mapping[str, list[Candidate]]
    evaluate: Evaluate
    level: dict[str, int] = field(default_factory=dict)
    frozen: set[str] = field(default_factory=set)
    trials: list[Trial] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def at(self, name: str, step: int = 0) -> Candidate:
        return self.layouts[name][self.level.get(name, 0) + step]

    def can_step(self, name: str) -> bool:
        return self.level.get(name, 0) + 1 < len(self.layouts[name])

    def cheapest_first(self, names: Sequence[str]) -> list[str]:
        """By the error that the next step adds for each byte it saves."""

        def price(name: str) -> float:
            now, then = self.at(name), self.at(name, 1)
            return (then.error - now.error) / (now.size.num_bytes - then.size.num_bytes)

        return sorted(names, key=price)

    def attempt(self, names: Sequence[str], floor: float) -> bool:
        """Evaluates with `names` one step coarser; keeps that state when the floor holds."""
        changed = names or list(self.layouts)
        step = 1 if names else 0
        tried = {name: self._restored(name, self.at(name, step).scheme) for name in changed}
        sizes = total_size([self.at(name, step if name in tried else 0) for name in self.layouts])
        accuracy = self.evaluate({**self.weights, **tried})
        accepted = accuracy >= floor
        self.trials.append(
            Trial(
                changed=tuple(names),
                cr_codes=sizes.cr_codes,
                bits_per_weight=sizes.bits_per_weight,
                accuracy=accuracy,
                accepted=accepted,
            )
        )
        if accepted:
            self.weights |= tried
            self.level |= {name: self.level.get(name, 0) + step for name in changed}
        return accepted

    def _restored(self, name: str, scheme: Scheme) -> Tensor:
        return dequantize(quantize_one(self.sites[name], name, scheme))


def _advance(state: _State, names: Sequence[str], floor: float, on_progress: OnProgress | None, total: int) -> None:
    accepted = state.attempt(names, floor)
    if not accepted and len(names) == 1:
        state.frozen.add(names[0])
    if on_progress is not None:
        settled = sum(name in state.frozen or not state.can_step(name) for name in state.layouts)
        trial = state.trials[-1]
        on_progress(settled, total, f"CR {trial.cr_codes:.3f} at {trial.accuracy:.4f}")
    if not accepted and len(names) > 1:
        middle = len(names) // 2
        _advance(state, names[:middle], floor, on_progress, total)
        _advance(state, names[middle:], floor, on_progress, total)
