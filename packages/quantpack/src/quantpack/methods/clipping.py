"""AWQ's clip search: weights that stand out are cut where that serves the others of their group.

Shape letters: S sampled tokens, O outputs, I inputs, G groups of weights that share a scale.
"""

import torch
from torch import Tensor

from quantpack.grouping import Grid
from quantpack.methods.grid import fake_quantize, fit_grid
from quantpack.scheme import Scheme

_SHARE_STEP = 0.05


def clip_weight(
    weight: Tensor, scheme: Scheme, samples: Tensor, num_steps: int, *, name: str, ranking: Tensor | None
) -> Tensor:
    """Weight [O, I] with each group cut to +-share * max|w|, share = 1, 0.95, .., where its output error is least.

    A group's error is the mean square over the samples of what its weights alone add to an output, as in AWQ's
    code: the groups of a row are taken to err independently. Where rows share a scale, their errors are added up.

    Args:
        weight: Already scaled.
        scheme: With axis "out": AWQ's groups lie along inputs.
        samples: [S, I], already divided by the factor.
        num_steps: Shares tried; the first is 1.
        name: The weight's name, for errors.
        ranking: As for `fake_quantize`; it must not depend on what is cut.
    """
    matrix = weight.float()
    groups = fit_grid(weight, scheme, name=name, ranking=ranking).found.grid
    low, high = groups.extremes(weight, len(weight))
    limits = torch.maximum(high, -low)
    best_errors = torch.full_like(limits, float("inf"))
    best_shares = torch.ones_like(limits)
    for step in range(num_steps):
        share = 1 - step * _SHARE_STEP
        cut = _cut(matrix, groups.spread(limits * share)).to(weight.dtype)
        rounded = fake_quantize(cut, scheme, name=name, ranking=ranking)
        errors = group_errors(rounded.sub_(matrix), samples, groups)
        better = errors < best_errors
        best_errors = torch.where(better, errors, best_errors)
        best_shares[better] = share
    return _cut(matrix, groups.spread(limits * best_shares)).to(weight.dtype)


def group_errors(difference: Tensor, samples: Tensor, groups: Grid) -> Tensor:
    """Mean square over S of each group's part of samples [S, I] times difference [O, I]; rows added up; [G]."""
    errors = torch.zeros(groups.num_groups)
    for run in torch.unique(groups.run).tolist():
        rows = torch.nonzero(groups.run == run).squeeze(1)
        chosen = difference[rows]
        for position, begin in enumerate(range(0, difference.shape[1], run)):
            inputs = slice(begin, begin + run)
            outputs = samples[:, inputs] @ chosen[:, inputs].T
            errors.scatter_add_(0, groups.first_group[rows] + position, outputs.square_().mean(0))
    return errors


def _cut(matrix: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(matrix, -bound), bound)
