"""A factor per input channel: weights are multiplied by it, their input is divided by it.

Shape letters: S sampled tokens, O outputs, I inputs.
"""

from dataclasses import replace

import torch
from torch import Tensor

from quantpack.calibration.sites import Site

_LEAST_SHARE = 1e-4


def power_factor(statistic: Tensor, exponent: float) -> Tensor:
    """Factor [I] float32 = statistic^exponent / sqrt(largest * smallest); positive and finite.

    The statistic is taken relative to its largest value and floored at 1e-4 of it, so that a channel that calibration
    never excited gets a usable factor and the unit of the activations does not matter. All zeros give all ones.

    Args:
        statistic: [I], at least 0: mean|x| (AWQ) or max|x| (ECM) of each input.
        exponent: 0 gives all ones.
    """
    largest = statistic.max()
    if largest <= 0:
        return torch.ones_like(statistic, dtype=torch.float32)
    powered = (statistic.double() / largest).clamp_(min=_LEAST_SHARE).pow_(exponent)
    return (powered / (powered.max() * powered.min()).sqrt()).float()


def scale_weight(weight: Tensor, factor: Tensor) -> Tensor:
    """Weight [O, I] times factor [I], rounded once to the weight's dtype: what a scaled checkpoint would hold."""
    return (weight.float() * factor).to(weight.dtype)


def scale_site(site: Site, factor: Tensor) -> Site:
    """The site as it is once the op before it divides by the factor [I]."""
    given = site.activations
    second_moment = given.second_moment
    if second_moment is not None:
        # The caller's matrix stays as it is: one new [I, I] matrix, divided by the second factor in place.
        second_moment = (second_moment / factor[:, None]).div_(factor)
    activations = replace(
        given,
        max_abs=given.max_abs / factor,
        mean_abs=given.mean_abs / factor,
        second_moment=second_moment,
        samples=given.samples / factor,
    )
    weights = {name: scale_weight(weight, factor) for name, weight in site.weights.items()}
    return replace(site, weights=weights, activations=activations)
