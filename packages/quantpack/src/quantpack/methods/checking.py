"""Refuses a site whose activations do not fit its weights, before a method computes with them."""

import math

import torch
from torch import Tensor

from quantpack.calibration.sites import Site
from quantpack.errors import CalibrationError, WeightError


def check_site(site: Site, *, second_moment: bool = False, samples: bool = False) -> None:
    """Checks shapes and values; `second_moment` and `samples` say what the method reads besides the maxima.

    Raises:
        CalibrationError: Names the weight, what is wrong with its activations, what was expected and what came.
        WeightError: A weight is NaN or infinite.
    """
    if not site.weights:
        raise CalibrationError("site: expected at least one weight, got none")
    name = min(site.weights)
    num_inputs = site.weights[name].shape[-1]
    for other, weight in site.weights.items():
        if weight.dim() != 2 or weight.shape[1] != num_inputs or weight.numel() == 0:
            raise CalibrationError(f"{other}: expected a weight [O, {num_inputs}], got {list(weight.shape)}")
        if other not in site.schemes:
            raise CalibrationError(f"{other}: expected a scheme for each weight of the site, got none")
        if not _is_finite(weight):
            raise WeightError(f"{other}: expected finite weights, got NaN or infinity")
    given = site.activations
    _check(given.max_abs, f"{name}: activations: max_abs", (num_inputs,), at_least_0=True)
    _check(given.mean_abs, f"{name}: activations: mean_abs", (num_inputs,), at_least_0=True)
    if not math.isfinite(site.visual_weight) or site.visual_weight < 0:
        raise CalibrationError(f"{name}: visual_weight: expected a finite number >= 0, got {site.visual_weight}")
    if samples:
        num_samples = len(given.is_visual)
        if num_samples == 0:
            raise CalibrationError(f"{name}: activations: expected at least one sampled token, got none")
        _check(given.samples, f"{name}: activations: samples", (num_samples, num_inputs))
    if second_moment:
        where = f"{name}: activations: second_moment"
        if given.second_moment is None:
            raise CalibrationError(f"{where}: expected [{num_inputs}, {num_inputs}], got none")
        _check(given.second_moment, where, (num_inputs, num_inputs))
        _check(given.second_moment.diagonal(), f"{where}: diagonal", (num_inputs,), at_least_0=True)


def _check(tensor: Tensor, where: str, shape: tuple[int, ...], *, at_least_0: bool = False) -> None:
    if tuple(tensor.shape) != shape:
        raise CalibrationError(f"{where}: expected {list(shape)}, got {list(tensor.shape)}")
    if not _is_finite(tensor):
        raise CalibrationError(f"{where}: expected finite numbers, got {tensor.min().item()} to {tensor.max().item()}")
    if at_least_0 and tensor.min() < 0:
        raise CalibrationError(f"{where}: expected numbers of at least 0, got {tensor.min().item()}")


def _is_finite(tensor: Tensor) -> bool:
    """NaN and Inf survive min and max, so no mask the size of the tensor is needed."""
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))
