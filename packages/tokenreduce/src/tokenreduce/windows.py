"""Mean and standard deviation inside the windows of a feature grid.

Shape suffixes: B images, H and W grid sides, h and w window counts, P positions of a window, D channels.
Where a side does not divide, the last windows are smaller, and only the positions present count.
"""

import torch
import torch.nn.functional as F


def window_means(x_BHWD: torch.Tensor, p: int, q: int) -> torch.Tensor:  # noqa: N803
    """Mean of every p x q window; [B, H, W, D] -> [B, ceil(H/p), ceil(W/q), D]."""
    x_BhwPD, present_hwP = _split(x_BHWD, p, q)  # noqa: N806
    return x_BhwPD.sum(dim=3) / present_hwP.sum(dim=2, keepdim=True)


def mean_window_std(x_BHWD: torch.Tensor, p: int, q: int) -> torch.Tensor:  # noqa: N803
    """Population std in every p x q window and channel, averaged over windows and channels; [B, H, W, D] -> [B]."""
    if p == q == 1:
        return x_BHWD.new_zeros(len(x_BHWD))
    x_BhwPD, present_hwP = _split(x_BHWD, p, q)  # noqa: N806
    count_hw1 = present_hwP.sum(dim=2, keepdim=True)
    mean_BhwD = x_BhwPD.sum(dim=3) / count_hw1  # noqa: N806
    # Two passes: E[x^2] - E[x]^2 cancels when a channel's offset is far larger than its spread.
    centred = (x_BhwPD - mean_BhwD.unsqueeze(3)) * present_hwP.unsqueeze(-1)
    variance_BhwD = centred.square().sum(dim=3) / count_hw1  # noqa: N806
    return variance_BhwD.sqrt().mean(dim=(1, 2, 3))


def _split(x_BHWD: torch.Tensor, p: int, q: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803
    """The windows, zero where the grid has ended, and 1 where a position is present."""
    num_images, height, width, num_channels = x_BHWD.shape
    h, w = -(-height // p), -(-width // q)
    padding = (0, w * q - width, 0, h * p - height)
    present = F.pad(x_BHWD.new_ones(height, width), padding).view(h, p, w, q)
    windows = F.pad(x_BHWD, (0, 0, *padding)).view(num_images, h, p, w, q, num_channels)
    # Copied so that a window lies together: sums over two apart dimensions are several times slower.
    windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(num_images, h, w, p * q, num_channels)
    return windows, present.permute(0, 2, 1, 3).reshape(h, w, p * q)
