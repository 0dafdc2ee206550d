"""How much more the loss depends on visual tokens than on text tokens, per site (MBQ's weight).

Li et al., "MBQ: Modality-Balanced Quantization for Large Vision-Language Models": the reconstruction
error of visual tokens counts by the ratio of the two groups' mean |gradient| of the language modeling
loss with respect to the site's output.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quantpack.calibration.folding import SiteOps
from quantpack.calibration.planning import name_of, scheduled_sites
from quantpack.calibration.running import FORWARD_ERRORS, calm, module_from, refused
from quantpack.calibration.samples import Sample, read_samples
from quantpack.calibration.tokens import mark_tokens, visual_token_ids
from quantpack.errors import CalibrationError, QuantpackError

_IGNORED = -100


def visual_weights(model: nn.Module, calibration: Iterable[Sample], weights: Collection[str]) -> dict[str, float]:
    """|gradient| of visual over text tokens, by weight name, equal for all weights of a site.

    1 where a site sees only one kind of token (the vision tower), or no gradient comes.

    Args:
        model: With all its weights in memory; left as it was.
        calibration: Keyword arguments of its forward. Without labels the next token of text is predicted.
        weights: Names of the weights wanted.

    Raises:
        CalibrationError: The model is on the meta device, has no loss or no input embeddings, does not take a
            sample, or gradients are not finite; names the sample.
    """
    samples = read_samples(calibration)
    embeddings = module_from(model, "get_input_embeddings")
    if embeddings is None:
        raise CalibrationError(f"{type(model).__name__}: expected a model with input embeddings, found none")
    if any(param.is_meta for param in model.parameters()):
        raise CalibrationError(f"{type(model).__name__}: expected all weights in memory, got some on the meta device")
    sums = _Sums(scheduled_sites(model, weights), visual_token_ids(model))
    with calm(model), _without_gradients(model), ExitStack() as undo:
        # Frozen weights have no gradient, so the graph must begin at the activations.
        undo.callback(embeddings.register_forward_hook(_begin_graph).remove)
        for name, linear in sums.linears.items():
            undo.callback(linear.register_forward_hook(sums.hook(name)).remove)
        for number, sample in enumerate(samples):
            sums.begin(number, sample)
            _backward(model, number, sample, sums.visual_ids)
    return sums.ratios()


class _Sums:
    """Sum and count of |gradient| elements, by site and kind of token."""

    def __init__(self, sites: tuple[SiteOps, ...], visual_ids: frozenset[int]) -> None:
        self.visual_ids = visual_ids
        self.linears = {name: linear for ops in sites for name, linear in ops.linears.items()}
        self._site_of = {name: name_of(ops) for ops in sites for name in ops.linears}
        self._sums = {(name_of(ops), is_visual): 0.0 for ops in sites for is_visual in (False, True)}
        self._counts = dict.fromkeys(self._sums, 0)
        self._number = 0
        self._sample: Sample = {}

    def begin(self, number: int, sample: Sample) -> None:
        self._number, self._sample = number, sample

    def hook(self, name: str) -> Callable[..., None]:
        def after(_module: nn.Module, _args: object, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, gradient))

        return after

    def _add(self, name: str, gradient: Tensor) -> None:
        flat = gradient.detach().reshape(-1, gradient.shape[-1]).float().abs()
        if not bool(torch.isfinite(flat).all()):
            raise CalibrationError(f"calibration sample {self._number}: {name}: expected finite gradients, got others")
        kept, visual = mark_tokens(self._sample, name, flat.shape[0], self.visual_ids)
        for is_visual in (False, True):
            chosen = flat[(kept & (visual == is_visual)).to(flat.device)]
            self._sums[self._site_of[name], is_visual] += float(chosen.sum(dtype=torch.float64))
            self._counts[self._site_of[name], is_visual] += chosen.numel()

    def ratios(self) -> dict[str, float]:
        found = {}
        for name, site in self._site_of.items():
            visual, text = (self._mean(site, is_visual) for is_visual in (True, False))
            found[f"{name}.weight"] = visual / text if visual > 0 and text > 0 else 1.0
        return found

    def _mean(self, site: str, is_visual: bool) -> float:
        return self._sums[site, is_visual] / max(self._counts[site, is_visual], 1)


def _backward(model: nn.Module, number: int, sample: Sample, visual_ids: frozenset[int]) -> None:
    given = {**sample, "labels": sample.get("labels")}
    if given["labels"] is None:
        given["labels"] = _next_tokens(number, sample, visual_ids)
    try:
        with torch.enable_grad():
            loss = getattr(model(**given), "loss", None)
    except QuantpackError:
        raise
    except FORWARD_ERRORS as error:
        raise refused(number, sample, error) from error
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise CalibrationError(f"calibration sample {number}: expected a loss that depends on its tokens, got {loss}")
    loss.backward()


def _next_tokens(number: int, sample: Sample, visual_ids: frozenset[int]) -> Tensor:
    """Labels [B, T]: input_ids, which the model shifts itself; images and padding are not predicted."""
    input_ids = sample.get("input_ids")
    if not isinstance(input_ids, Tensor):
        raise CalibrationError(f"calibration sample {number}: expected labels or input_ids, got {sorted(sample)}")
    name = "language_model."
    kept, visual = mark_tokens(sample, name, input_ids.numel(), visual_ids)
    wanted = (kept & ~visual).reshape(input_ids.shape).to(input_ids.device)
    return torch.where(wanted, input_ids, torch.full_like(input_ids, _IGNORED))


def _begin_graph(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    # A copy, for some models write image features into the embeddings, which a leaf does not allow.
    return output if output.requires_grad else output.detach().requires_grad_().clone()


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """No gradients of weights: they would take as much memory as the weights."""
    wanted = [param for param in model.parameters() if param.requires_grad]
    for param in wanted:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in wanted:
            param.requires_grad_(True)
