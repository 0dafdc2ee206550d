"""Mean and variance inside the windows of a feature grid, and of the whole image from those.

Shape suffixes: B images, H and W grid sides, K windows, D channels.
Where a side does not divide, the last windows are smaller, and only the positions present count.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowStatistics:
    """Statistics of all windows of B images, in no particular order of windows.

    Attributes:
        means: Mean of each window and channel, [B, K, D].
        variances: Population variance of each window and channel, [B, K, D].
        counts: Positions in each window, [K].
    """

    means: torch.Tensor
    variances: torch.Tensor
    counts: torch.Tensor


def window_statistics(x_BHWD: torch.Tensor, p: int, q: int) -> WindowStatistics:  # noqa: N803
    """Statistics of every p x q window of [B, H, W, D]; each value of the features is read once.

    A grid whose sides do not divide falls into up to four regions of equal windows, and each is a plain view.
    `torch.var_mean` over such a view says the same, 50 times slower on a CPU.
    """
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    counts: list[int] = []
    for top, h, height in _segments(x_BHWD.shape[1], p):
        rows = x_BHWD[:, top : top + h * height].unflatten(1, (h, height))
        means, variances = _merge(rows, None, 2)
        for left, w, width in _segments(x_BHWD.shape[2], q):
            columns = [
                None if x is None else x[:, :, left : left + w * width].unflatten(2, (w, width))
                for x in (means, variances)
            ]
            assert columns[0] is not None
            mean, variance = _merge(columns[0], columns[1], 3)
            variance = torch.zeros_like(mean) if variance is None else variance
            parts.append((mean.flatten(1, 2), variance.flatten(1, 2)))
            counts += [height * width] * (h * w)
    whole = [group[0] if len(group) == 1 else torch.cat(group, dim=1) for group in zip(*parts, strict=True)]
    return WindowStatistics(means=whole[0], variances=whole[1], counts=torch.tensor(counts, device=x_BHWD.device))


def image_statistics(windows: WindowStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population variance of each channel over the whole image, [B, D] each.

    By the law of total variance: the mean of the windows' variances, and the variance of their means.
    """
    weights = (windows.counts / windows.counts.sum()).to(windows.means.dtype)[:, None]
    first = windows.means[:, :1]
    # Against the first window, so that equal windows differ by exactly 0, whatever their offset.
    offsets = windows.means - first
    centre = (offsets * weights).sum(dim=1, keepdim=True)
    between = (offsets - centre).square_().add_(windows.variances).mul_(weights).sum(dim=1)
    return (first + centre).squeeze(1), between


def window_means(x_BHWD: torch.Tensor, p: int, q: int) -> torch.Tensor:  # noqa: N803
    """Mean of every p x q window; [B, H, W, D] -> [B, ceil(H/p), ceil(W/q), D].

    Computed in float32 at least, and rounded once.
    """
    wide = x_BHWD.to(torch.promote_types(x_BHWD.dtype, torch.float32)).permute(0, 3, 1, 2)
    means = F.avg_pool2d(wide, (p, q), ceil_mode=True, count_include_pad=False)
    return means.permute(0, 2, 3, 1).to(x_BHWD.dtype)


def window_centres(side: int, factor: int) -> torch.Tensor:
    """Mean position of each window along a side, over the positions present in it; float32 [ceil(side/factor)]."""
    starts = torch.arange(0, side, factor, dtype=torch.float32)
    return (starts + (starts + (factor - 1)).clamp_max(side - 1)) / 2


def _segments(side: int, size: int) -> list[tuple[int, int, int]]:
    """Start, number and size of the whole windows along a side, then of the smaller one, where there is one."""
    whole, rest = divmod(side, size)
    segments = [(0, whole, size), (whole * size, 1, rest)]
    return [segment for segment in segments if segment[1] and segment[2]]


def _merge(means: torch.Tensor, variances: torch.Tensor | None, dim: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and variance of the union of equally large sets that lie along `dim`; variances None: all 0.

    Welford's update, one set after the other: unlike E[x^2] - E[x]^2 it keeps its digits where the offset is far
    larger than the spread, and unlike centring it does not need the mean beforehand.
    """
    count = means.shape[dim]
    if count == 1:
        return means.select(dim, 0), None if variances is None else variances.select(dim, 0)
    mean = means.select(dim, 0).clone()
    total = None if variances is None else variances.sum(dim=dim)
    for index in range(1, count):
        step = means.select(dim, index) - mean
        mean.add_(step, alpha=1 / (index + 1))
        share = index / (index + 1)
        total = step.square_().mul_(share) if total is None else total.addcmul_(step, step, value=share)
    assert total is not None
    return mean, total.div_(count)
