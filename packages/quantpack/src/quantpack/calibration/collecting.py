"""Gathers the activations of several sites while a model, or one of its layers, runs."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor

from quantpack.calibration.folding import SiteOps
from quantpack.calibration.observing import Observer
from quantpack.calibration.planning import name_of
from quantpack.calibration.running import reading
from quantpack.calibration.samples import Sample
from quantpack.calibration.sites import Activations
from quantpack.calibration.tokens import mark_tokens


class Collector:
    """One observer for each site.

    The linear layers of a site read one tensor, which counts once. Where they read several (queries
    from text, keys from text and image), each counts, for one factor must do for all.
    """

    def __init__(self, sites: Sequence[SiteOps], *, second_moment: bool, visual_ids: frozenset[int]) -> None:
        self._sites = sites
        self._site_of = {name: name_of(ops) for ops in sites for name in ops.linears}
        self._observers = {
            name_of(ops): Observer(next(iter(ops.linears.values())).in_features, second_moment=second_moment)
            for ops in sites
        }
        self._visual_ids = visual_ids
        self._number = 0
        self._sample: Sample = {}
        self._seen: dict[str, list[Tensor]] = {}
        self._order: list[str] = []

    def begin(self, number: int, sample: Sample) -> None:
        """What is read from now on comes from this sample."""
        self._number, self._sample, self._seen = number, sample, {}

    def read(self, name: str, tokens: Tensor) -> None:
        """Counts in what the linear layer `name` reads; layers of other sites are left out.

        Raises:
            CalibrationError: NaN or infinity; names the sample and the layer.
        """
        site = self._site_of.get(name)
        if site is None or any(tokens is earlier for earlier in self._seen.get(site, ())):
            return
        self._seen.setdefault(site, []).append(tokens)
        if site not in self._order:
            self._order.append(site)
        flat = tokens.reshape(-1, tokens.shape[-1])
        kept, is_visual = mark_tokens(self._sample, name, flat.shape[0], self._visual_ids)
        if not bool(kept.all()):
            flat, is_visual = flat[kept.to(flat.device)], is_visual[kept]
        self._observers[site].add(flat, is_visual, f"calibration sample {self._number}: {name}")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reads before every linear layer of the sites, by hooks."""
        with ExitStack() as undo:
            for ops in self._sites:
                for name, linear in ops.linears.items():
                    undo.enter_context(reading(linear, name, self.read))
            yield

    def results(self) -> list[tuple[SiteOps, Activations]]:
        """Sites that read at least one token, in order of execution; gives each observer up."""
        by_name = {name_of(ops): ops for ops in self._sites}
        seen = [name for name in self._order if self._observers[name].num_tokens]
        return [(by_name[name], self._observers.pop(name).result()) for name in seen]
