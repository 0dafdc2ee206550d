"""Ways to choose each image's factor: DFMR's own, other statistics, other rules, and no look at the image at all.

A statistic is a loss for every factor, [N, F], 0 for factor 1. A rule turns losses into factors with one number,
found on training images, that says how many tokens are spent.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenreduce.sigma import choose_indices, sigma_per_factor
from vlm.data import GRID, PATCH
from vlm.subject import FACTORS, TOKENS, Images

NUM_CALIBRATION = 2000
COSTS = torch.tensor([float(TOKENS[factor]) for factor in FACTORS])
Chooser = Callable[[Tensor], Tensor]


def statistics(images: Images, channel_std: Tensor) -> dict[str, Tensor]:
    """Name -> losses [N, F]; channel_std [D] of calibration images whitens one of them."""
    features = images.features
    pixels = _patches(images)
    return {
        "residual": sigma_per_factor(features, FACTORS),
        "not normalised": sigma_per_factor(features, FACTORS, normalize="none"),
        "whitened": sigma_per_factor(features / channel_std, FACTORS, normalize="none"),
        "raw patches": sigma_per_factor(pixels, FACTORS),
        "raw patches, not normalised": sigma_per_factor(pixels, FACTORS, normalize="none"),
        "largest window": _per_window(features, lambda std: std.amax(dim=(1, 2))),
        "mean square": _per_window(features, lambda std: std.square().mean(dim=(1, 2))),
        "attended windows": _attended(images),
        "literal": sigma_per_factor(features, FACTORS, mode="literal"),
    }


def calibrated(losses: Tensor, mean_tokens: float, rule: str) -> Chooser:
    """The rule whose mean tokens over these losses [N, F] are nearest to the wanted mean; losses -> index [N].

    "threshold": the largest factor with loss <= tau (DFMR). "literal": its printed rule. "trade": the factor with
    the least loss + price * tokens, so that a large saving may cost more than a small one.
    """
    low, high = (-30.0, 10.0) if rule == "trade" else (-20.0, 8.0)
    for _ in range(60):
        middle = (low + high) / 2
        if float(COSTS[_choose(losses, 2.0**middle, rule)].mean()) > mean_tokens:
            low = middle
        else:
            high = middle
    near = min((low, high), key=lambda x: abs(float(COSTS[_choose(losses, 2.0**x, rule)].mean()) - mean_tokens))
    return lambda others: _choose(others, 2.0**near, rule)


def shares_of(indices: Tensor) -> list[float]:
    return [float((indices == index).float().mean()) for index in range(len(FACTORS))]


def blind_shares(scores: list[float], mean_tokens: float) -> list[float]:
    """The shares of the factors with this mean whose expected score, scores by factor, is best."""
    best = max(
        _two_factor_shares(mean_tokens), key=lambda shares: sum(a * b for a, b in zip(shares, scores, strict=True))
    )
    return best


def oracle(right: Tensor, mean_tokens: float) -> Tensor:
    """The factors [N] with the most right answers inside the mean; right answers [N, F].

    Exact but for the last image: prices of tokens are searched, as in `calibrated`, on the answers themselves.
    """
    losses = right.amax(dim=1, keepdim=True) - right
    # Equal answers: the cheaper factor. Without this, ties at price 0 take the dearest.
    low, high = -40.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(COSTS[_choose(losses, 2.0**middle, "trade")].mean()) > mean_tokens:
            low = middle
        else:
            high = middle
    return _choose(losses, 2.0**high, "trade")


def _choose(losses: Tensor, value: float, rule: str) -> Tensor:
    if rule == "trade":
        return (losses.double() + value * COSTS.double()).argmin(dim=1)
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


def _patches(images: Images) -> Tensor:
    pixels = torch.from_numpy(images.split.pixels).float() / 255
    tiles = pixels.view(len(images), GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 2, 4, 5)
    return tiles.reshape(len(images), GRID, GRID, -1)


def _window_std(features: Tensor, factor: int) -> Tensor:
    """Root mean square over channels of the std in every window, by the image's own spread; [N, h, w]."""
    spread = features.flatten(1).std(dim=1, correction=0)[:, None, None]
    side = -(-GRID // factor)
    rows = []
    for top in range(side):
        row = []
        for left in range(side):
            window = features[:, top * factor : (top + 1) * factor, left * factor : (left + 1) * factor]
            row.append(window.flatten(1, 2).var(dim=1, correction=0).mean(dim=1).sqrt())
        rows.append(torch.stack(row, dim=1))
    return torch.stack(rows, dim=1) / spread


def _per_window(features: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    columns = [reduce(_window_std(features, factor)) for factor in FACTORS[1:]]
    return torch.stack([torch.zeros(len(features)), *columns], dim=1)


def _attended(images: Images) -> Tensor:
    """Windows' spread weighted by the attention they receive in the tower."""
    columns = [torch.zeros(len(images))]
    for factor in FACTORS[1:]:
        std = _window_std(images.features, factor)
        seen = torch.nn.functional.avg_pool2d(images.attention[:, None], factor, ceil_mode=True, divisor_override=1)[
            :, 0
        ]
        columns.append((std * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)))
    return torch.stack(columns, dim=1)
