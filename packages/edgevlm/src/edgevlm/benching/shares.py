"""How a request's time divides among a model's parts."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from edgevlm.benching.timing import last_position, synchronize
from edgevlm.profiling.parts import FUSION, part_paths

OTHER = "other"


@torch.inference_mode()
def time_shares(model: Any, config: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
    """Each part's share of the time to the first token and of the next token's, adding up to 1.

    A part inside another, such as Qwen's merger in its encoder, is not in the other's share. "other" is what no
    part does: word embeddings, putting images in their places, choosing the token.
    """
    last = last_position(model.device)
    with _clocked(model, config) as spent_s:
        first, output = _shares(model, spent_s, lambda: model(**inputs, use_cache=True, logits_to_keep=last))
        token_ids = output.logits[:, -1:].argmax(-1)
        later, _ = _shares(
            model,
            spent_s,
            lambda: model(input_ids=token_ids, past_key_values=output.past_key_values, use_cache=True),
        )
    return first, later


def _shares(model: Any, spent_s: dict[str, float], call: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    spent_s.clear()
    synchronize(model.device)
    start_s = time.perf_counter()
    output = call()
    synchronize(model.device)
    whole_s = time.perf_counter() - start_s
    shares = {part: seconds / whole_s for part, seconds in spent_s.items()}
    return shares | {OTHER: max(0.0, 1.0 - sum(shares.values()))}, output


@contextmanager
def _clocked(model: Any, config: Any) -> Iterator[dict[str, float]]:
    """Puts a clock around each part; what runs inside another part's is taken off that one's."""
    spent_s: defaultdict[str, float] = defaultdict(float)
    inside_s: list[float] = []

    def clocked(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize(model.device)
            inside_s.append(0.0)
            start_s = time.perf_counter()
            result = call(*args, **kwargs)
            synchronize(model.device)
            whole_s = time.perf_counter() - start_s
            spent_s[part] += whole_s - inside_s.pop()
            if inside_s:
                inside_s[-1] += whole_s
            return result

        return run

    put = []
    for path, part in part_paths(config).items():
        # Part of the fusion's work is done once for each image, outside its forward.
        for method in ("forward", "remember") if part == FUSION else ("forward",):
            module = _module(model, path)
            if module is not None:
                setattr(module, method, clocked(part, getattr(module, method)))
                put.append((module, method))
    try:
        yield spent_s
    finally:
        for module, method in put:
            delattr(module, method)


def _module(model: Any, path: str) -> Any:
    owner, _, field = path.rpartition(".")
    return getattr(model.get_submodule(owner), field, None)
