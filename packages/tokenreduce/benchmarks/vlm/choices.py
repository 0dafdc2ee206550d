"""Ways to choose each image's factor: DFMR's own, other statistics, other rules, and no look at the image at all.

A statistic is a loss for every factor, [N, F], 0 for factor 1. A rule turns losses into factors with one number,
found on training images, that says how many tokens are spent.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from vlm.subject import FACTORS, TOKENS

from tokenreduce.sigma import choose_indices

NUM_CALIBRATION = 2000
COSTS = torch.tensor([float(TOKENS[factor]) for factor in FACTORS])
Chooser = Callable[[Tensor], Tensor]


def calibrated(losses: Tensor, mean_tokens: float, rule: str) -> Chooser:
    """The rule whose mean tokens over these losses [N, F] are nearest to the wanted mean; losses -> index [N].

    "threshold": the largest factor with loss <= tau (DFMR). "literal": its printed rule. "trade": the factor with
    the least loss + price * tokens, so that a large saving may cost more than a small one. "factors 1, 2": DFMR
    without the largest factor.
    """
    low, high = _bracket(losses, mean_tokens, rule)
    near = min((low, high), key=lambda x: abs(float(COSTS[_choose(losses, 2.0**x, rule)].mean()) - mean_tokens))
    return lambda others: _choose(others, 2.0**near, rule)


def shares_of(indices: Tensor) -> list[float]:
    return [float((indices == index).float().mean()) for index in range(len(FACTORS))]


def blind_shares(scores: list[float], mean_tokens: float) -> list[float]:
    """The shares of the factors with this mean whose expected score, scores by factor, is best."""
    return max(
        _two_factor_shares(mean_tokens), key=lambda shares: sum(a * b for a, b in zip(shares, scores, strict=True))
    )


def two_thresholds(losses: Tensor, mean_tokens: float, dear_share: float) -> Chooser:
    """A threshold for each factor: the dearest share keep all tokens, and the rest share what is left of the mean.

    Factor 1 where the loss of factor 2 is among the largest, factor 3 where its own loss is among the smallest of
    the others; so the shares are what is wanted, where one tau fixes them by how the two losses hang together.
    """
    first, second, third = COSTS.tolist()
    cheap_share = ((first - second) * dear_share - (mean_tokens - second)) / (second - third)
    keep = float(losses[:, 1].double().quantile(1 - dear_share))
    others = losses[losses[:, 1] <= keep, 2].double()
    most = float(others.quantile(min(1.0, cheap_share / (1 - dear_share)))) if cheap_share > 0 else -1.0

    def choose(values: Tensor) -> Tensor:
        indices = torch.where(values[:, 2].double() <= most, 2, 1)
        return torch.where(values[:, 1].double() > keep, 0, indices)

    return choose


def dear_shares(mean_tokens: float) -> list[float]:
    """Shares at factor 1 that leave shares of the other two between 0 and 1."""
    first, second, third = COSTS.tolist()
    least, most = max(0.0, (mean_tokens - second) / (first - second)), (mean_tokens - third) / (first - third)
    return [least + (most - least) * step / 12 for step in range(12)]


def oracle(right: Tensor, mean_tokens: float) -> Tensor:
    """The factors [N] with the most right answers inside the mean; right answers [N, F].

    Exact but for the last image: prices of tokens are searched, as in `calibrated`, on the answers themselves, and what
    the dearer price leaves unspent goes to images in their order that gain at the cheaper one.
    """
    losses = right.amax(dim=1, keepdim=True) - right
    low, high = _bracket(losses, mean_tokens, "trade")
    rich, indices = (_choose(losses, 2.0**value, "trade") for value in (low, high))
    more = COSTS[rich] - COSTS[indices]
    affordable = more.cumsum(0) <= mean_tokens * len(losses) - COSTS[indices].sum()
    return torch.where(affordable, rich, indices)


def _bracket(losses: Tensor, mean_tokens: float, rule: str) -> tuple[float, float]:
    """Neighbouring exponents of 2: above the mean, and not above it."""
    low, high = -40.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(COSTS[_choose(losses, 2.0**middle, rule)].mean()) > mean_tokens:
            low = middle
        else:
            high = middle
    return low, high


def _choose(losses: Tensor, value: float, rule: str) -> Tensor:
    if rule == "trade":
        return (losses.double() + value * COSTS.double()).argmin(dim=1)
    if rule == "factors 1, 2":
        return choose_indices(losses[:, :2], value, "residual")
    return choose_indices(losses, value, "literal" if rule == "literal" else "residual")


def _two_factor_shares(mean_tokens: float) -> list[list[float]]:
    """All mixtures of at most two factors with this mean; the best mixture is one of them (linear programme)."""
    found = []
    costs = COSTS.tolist()
    for first in range(len(costs)):
        for second in range(len(costs)):
            if costs[first] > mean_tokens >= costs[second]:
                share = (mean_tokens - costs[second]) / (costs[first] - costs[second])
                found.append([share * (i == first) + (1 - share) * (i == second) for i in range(len(costs))])
    return found
