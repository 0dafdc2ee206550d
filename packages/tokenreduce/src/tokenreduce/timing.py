"""What a reduction costs beside the vision encoder, and what it saves of a model's prefill."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tokenreduce.attachment import ReductionHandle, attach, detach
from tokenreduce.policy import DEFAULT_FACTORS, ReductionPolicy
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducing import Reducer, VisualGrid

# No sigma is above it: every image gets the largest factor, so that pooling is timed as well.
_LARGE_TAU = 1e30


@dataclass(frozen=True, kw_only=True, slots=True)
class DfmrCost:
    """One measurement.

    Attributes:
        grid: Shape of the first view's features, [H, W, D].
        num_views: Views in the batch.
        encoder_ms: Median time of the encoder.
        dfmr_ms: Median time of DFMR on what it gave, for each mode.
    """

    grid: tuple[int, ...]
    num_views: int
    encoder_ms: float
    dfmr_ms: dict[str, float]

    def share(self, mode: str) -> float:
        """DFMR's time as a share of the encoder's."""
        return self.dfmr_ms[mode] / self.encoder_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillRow:
    """One way to reduce tokens in a model's prefill.

    Attributes:
        name: Of the reducer.
        visual_tokens: Mean visual tokens of a prompt.
        prefill_ms: Mean over the prompts of the median time from pixels to the first token's logits.
    """

    name: str
    visual_tokens: float
    prefill_ms: float


def median_ms(work: Callable[[], Any], repeats: int, device: torch.device | str = "cpu") -> float:
    """Median wall-clock time of `repeats` runs after one that warms up, in milliseconds."""
    times = []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        work()
        _wait(device)
        times.append((time.perf_counter() - start_s) * 1e3)
    return statistics.median(times[1:])


@torch.no_grad()
def dfmr_cost(
    encode: Callable[[], Sequence[VisualGrid]], *, factors: Sequence[int] = DEFAULT_FACTORS, repeats: int = 10
) -> DfmrCost:
    """Times an encoder, from pixels to views, and DFMR on these views, pooling included."""
    views = list(encode())
    device = views[0].features.device
    times = {}
    for mode in ("residual", "literal"):
        reducer = DfmrReducer(ReductionPolicy(tau=_LARGE_TAU, mode=mode, factors=tuple(factors)))
        times[mode] = median_ms(partial(reducer.reduce, views, rows=range(len(views))), repeats, device)
    return DfmrCost(
        grid=tuple(views[0].features.shape),
        num_views=len(views),
        encoder_ms=median_ms(encode, repeats, device),
        dfmr_ms=times,
    )


@torch.no_grad()
def prefill_times(
    model: Any, calls: Sequence[Mapping[str, Any]], reducers: Mapping[str, Reducer | None], repeats: int = 3
) -> list[PrefillRow]:
    """Times a model's prefill, vision encoder included, without a reducer (None) and with each, in one run.

    Args:
        model: A model that `attach` takes, with nothing attached.
        calls: Inputs of its forward, one prompt each, with images.
        reducers: By the name of their row.
        repeats: Runs of each call, of which the median counts.

    Raises:
        TokenReduceError: As `attach` and the reducers raise it.
    """
    tokens: dict[str, list[int]] = {}
    times: dict[str, list[list[float]]] = {name: [] for name in reducers}
    # Round by round, so that a machine that slows down slows all of them; the first round warms up.
    for _ in range(repeats + 1):
        for name, reducer in reducers.items():
            times[name].append([])
            tokens[name] = []
            handle = None if reducer is None else attach(model, reducer)
            try:
                for call in calls:
                    start_s = time.perf_counter()
                    model(**call, logits_to_keep=1)
                    _wait(model.device)
                    times[name][-1].append((time.perf_counter() - start_s) * 1e3)
                    tokens[name].append(_num_visual_tokens(model, handle, call))
            finally:
                if handle is not None:
                    detach(model)
    return [
        PrefillRow(
            name=name,
            visual_tokens=statistics.mean(tokens[name]),
            prefill_ms=statistics.mean(statistics.median(runs) for runs in zip(*times[name][1:], strict=True)),
        )
        for name in reducers
    ]


def _num_visual_tokens(model: Any, handle: ReductionHandle | None, call: Mapping[str, Any]) -> int:
    if handle is not None:
        return sum(handle.last_num_visual_tokens)
    return int((call["input_ids"] == model.config.image_token_id).sum())


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
