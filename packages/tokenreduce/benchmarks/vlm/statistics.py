"""What pooling an image by each factor would throw away, measured in several ways."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from vlm.data import GRID, PATCH
from vlm.subject import FACTORS, Images

from tokenreduce.sigma import sigma_per_factor


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
        seen = avg_pool2d(images.attention[:, None], factor, ceil_mode=True, divisor_override=1)[:, 0]
        columns.append((std * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)))
    return torch.stack(columns, dim=1)
