"""The statistic that decides how far an image is pooled.

Source: LLaVA-Zip (Wang and Xuan, 2024), section 3.2, equations 1 to 3.
"""

from collections.abc import Sequence

import torch

from tokenreduce.errors import FeatureError
from tokenreduce.grids import group_grids
from tokenreduce.policy import DEFAULT_FACTORS, check_factors, check_mode, check_normalization
from tokenreduce.reducing import Features, as_views
from tokenreduce.windows import image_statistics, window_statistics

# Below this share of the image's root mean square a spread is float32 rounding error, and counts as none.
_ROUNDING = 1e-6
# Squares of deviations that matter beside a smaller mean square than this would vanish in float32.
_LEAST_SQUARE = 1e-20


def sigma_per_factor(
    features: torch.Tensor, factors: Sequence[int] = DEFAULT_FACTORS, mode: str = "residual", normalize: str = "image"
) -> torch.Tensor:
    """Sigma of every factor for every image; [B, H, W, D] -> float32 [B, F], without gradient.

    Inside each window the population std of every channel is taken, then the mean over channels and
    windows (equations 1 to 3). With normalize="image" sigma is divided by the std of all H * W * D values
    of its image, so that tau has no unit; a constant image has sigma 0. Statistics are float32 whatever the
    features are. Each factor above 1 reads the features once; half precision is first converted, one read more.

    Raises:
        FeatureError: The features are not a finite floating [B, H, W, D] without an empty side.
        PolicyError: factors, mode or normalize is out of range.
    """
    _check_options(factors, mode, normalize)
    shape = list(features.shape)
    if features.ndim != 4 or 0 in shape:
        raise FeatureError(f"features: expected a non-empty [B, H, W, D], got shape {shape}")
    if not features.is_floating_point():
        raise FeatureError(f"features: expected a floating type, got {features.dtype}")
    return _measure(features, [f"features, image {row}" for row in range(len(features))], factors, mode, normalize)


def sigmas_of_grids(
    features: Features,
    factors: Sequence[int] = DEFAULT_FACTORS,
    mode: str = "residual",
    normalize: str = "image",
) -> torch.Tensor:
    """Sigma of every factor for each of N grids [H, W, D] or views of any sizes; float32 [N, F] on the first's device.

    Grids of one size are measured together (copied into a batch; a batch [B, H, W, D] is taken as it is).
    Otherwise as `sigma_per_factor`.
    """
    if isinstance(features, torch.Tensor):
        return sigma_per_factor(features, factors, mode, normalize)
    _check_options(factors, mode, normalize)
    grids = [view.features for view in as_views(features)]
    device = grids[0].device if grids else None
    sigmas = torch.zeros(len(grids), len(factors), device=device)
    for rows, batch in group_grids(grids):
        names = [f"grid {row}" for row in rows]
        sigmas[rows] = _measure(batch, names, factors, mode, normalize).to(sigmas.device)
    return sigmas


def choose_indices(sigmas: torch.Tensor, tau: float, mode: str) -> torch.Tensor:
    """Index of the factor each image gets, given sigma of ascending factors; [B, F] -> int64 [B]."""
    # tau is a double; rounding it to the sigmas' type could move an image across it.
    return (crossings(sigmas, mode).double() <= tau).sum(dim=1)


def crossings(sigmas: torch.Tensor, mode: str) -> torch.Tensor:
    """The tau from which on an image gets index 1, 2, ... or more of its ascending factors; [B, F] -> [B, F-1].

    Residual: index i or more as soon as any sigma from i on is within tau. Literal: once all before i are.
    """
    if mode == "residual":
        return sigmas[:, 1:].flip(1).cummin(dim=1).values.flip(1) if sigmas.shape[1] > 1 else sigmas[:, 1:]
    return sigmas[:, :-1].cummax(dim=1).values if sigmas.shape[1] > 1 else sigmas[:, :-1]


def _measure(
    features: torch.Tensor, names: Sequence[str], factors: Sequence[int], mode: str, normalize: str
) -> torch.Tensor:
    """As `sigma_per_factor`, with a name for each image of the batch."""
    with torch.no_grad():
        features = features.detach()
        sigmas, mean_square = _sigmas(features.float(), factors, mode, normalize)
        # Looked at in the small results; the features are looked at again only where something is wrong.
        sound = sigmas.isfinite().all(dim=1) & mean_square.isfinite() & (mean_square > _LEAST_SQUARE)
        if bool(sound.all()):
            return sigmas
        rows = sound.logical_not().nonzero().flatten()
        sigmas[rows] = _measure_rescaled(
            features[rows], [names[row] for row in rows.tolist()], factors, mode, normalize
        )
        return sigmas


def _measure_rescaled(
    features: torch.Tensor, names: Sequence[str], factors: Sequence[int], mode: str, normalize: str
) -> torch.Tensor:
    """For images whose squares overflow or vanish in float32: each is scaled to about 1 first.

    Raises:
        FeatureError: An image is not finite.
    """
    for row, finite in enumerate(features.isfinite().flatten(1).all(dim=1).tolist()):
        if not finite:
            raise FeatureError(f"{names[row]}: expected finite values, got NaN or infinity")
    wide = features.double()
    # A power of two changes no digit.
    exponent = wide.abs().amax(dim=(1, 2, 3)).frexp().exponent.clamp(-1000, 1000)
    sigmas, _ = _sigmas(wide.ldexp(-exponent[:, None, None, None]).float(), factors, mode, normalize)
    return sigmas if normalize == "image" else sigmas.double().ldexp(exponent[:, None]).float()


def _sigmas(x: torch.Tensor, factors: Sequence[int], mode: str, normalize: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigma of every factor [B, F], and the mean square of each image [B]; x float32 [B, H, W, D]."""
    height, width = x.shape[1:3]
    statistics = [window_statistics(x, *_window(height, width, factor, mode)) for factor in factors if factor > 1]
    # The image as a whole follows from its windows; it is read itself only where there are none.
    source = min(statistics or [window_statistics(x, height, width)], key=lambda windows: len(windows.counts))
    mean_BD, variance_BD = image_statistics(source)  # noqa: N806
    # s = 1: windows of one position, or the whole image as the only window.
    first = variance_BD.sqrt().mean(dim=1) if mode == "literal" else x.new_zeros(len(x))
    columns = [first, *(windows.variances.sqrt_().mean(dim=(1, 2)) for windows in statistics)]
    within = variance_BD.mean(dim=1)
    mean_square = mean_BD.square().mean(dim=1) + within
    rounding = _ROUNDING * mean_square.sqrt()[:, None]
    sigmas = torch.stack(columns, dim=1)
    sigmas = torch.where(sigmas <= rounding, 0.0, sigmas)
    if normalize == "none":
        return sigmas, mean_square
    # Against the first channel, as in image_statistics.
    offsets = mean_BD - mean_BD[:, :1]
    between = (offsets - offsets.mean(dim=1, keepdim=True)).square().mean(dim=1)
    spread = (within + between).sqrt()[:, None]
    return torch.where(spread <= rounding, 0.0, sigmas / spread), mean_square


def _window(height: int, width: int, factor: int, mode: str) -> tuple[int, int]:
    if mode == "residual":
        return factor, factor
    return -(-height // factor), -(-width // factor)


def _check_options(factors: Sequence[int], mode: str, normalize: str) -> None:
    check_factors(tuple(factors))
    check_mode(mode)
    check_normalization(normalize)
