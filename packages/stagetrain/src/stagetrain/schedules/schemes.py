"""Schedules by name: the paper's schemes, always compressed ones, and AuroraEdge's three freeze stages."""

from collections.abc import Sequence

from stagetrain.errors import ScheduleError, UnknownSchemeError
from stagetrain.schedules.schedule import Schedule, Stage
from stagetrain.schedules.setting import CompressionSetting

PAPER_LAYERS = 32
"""Depth of the decoder that Table 1 was written for."""

PLAIN, AURORAEDGE = "plain", "auroraedge"

_POINTS: dict[str, tuple[tuple[int, int] | None, ...]] = {
    PLAIN: (None,),
    "two_stage": ((2, 8), None),
    "three_stage_deeper": ((2, 8), (16, 8), None),
    "three_stage_wider": ((2, 8), (2, 2), None),
    "four_stage_wider_then_deeper": ((2, 8), (2, 2), (16, 2), None),
    "four_stage_deeper_then_wider": ((2, 8), (16, 8), (16, 2), None),
}

TABLE_1 = tuple(name for name in _POINTS if name != PLAIN)
"""Names of the five schemes of Table 1."""

SCHEMES = (*_POINTS, AURORAEDGE)
"""Every name that `named_schedule` knows."""

# AuroraEdge's Tables 1 and 2: what trains, peak learning rate, epochs, batch.
_AURORAEDGE = (
    (("connectors",), 1e-3, 3, 32),
    (("connectors", "language"), 2e-5, 3, 32),
    (("vision", "connectors", "language"), 1e-6, 2, 16),
)


def scaled_layer(layer: int, num_layers: int) -> int:
    """Layer `layer` of Table 1's 32 in a decoder of `num_layers`: max(1, round(layer * num_layers / 32))."""
    return max(1, round(layer * num_layers / PAPER_LAYERS))


def named_schedule(name: str, num_layers: int, fractions: Sequence[float] | None = None) -> Schedule:
    """The scheme `name` for a decoder of `num_layers`.

    Args:
        name: One of `SCHEMES`.
        num_layers: Decoder layers, at least 2; Table 1's layers are scaled to them (`scaled_layer`).
        fractions: Share of each stage, for splits as Table 7's; by default stages of equal length.

    Raises:
        UnknownSchemeError: No such scheme; `edge` needs arguments, see `edge_schedule`.
        ScheduleError: The decoder has fewer than 2 layers, or the fractions do not fit.
    """
    if name == AURORAEDGE and fractions is None:
        return auroraedge_schedule()
    if name not in _POINTS:
        raise UnknownSchemeError(f"scheme: expected one of {', '.join(SCHEMES)}, got {name!r}")
    if num_layers < 2:
        raise ScheduleError(f"scheme {name}: expected a decoder of at least 2 layers, got {num_layers}")
    points = _POINTS[name]
    shares = [1 / len(points)] * len(points) if fractions is None else list(fractions)
    if len(shares) != len(points):
        raise ScheduleError(f"scheme {name}: expected {len(points)} fractions, got {len(shares)}")
    stages = []
    for point, share in zip(points, shares, strict=True):
        setting = (
            None if point is None else CompressionSetting(layer=scaled_layer(point[0], num_layers), stride=point[1])
        )
        stages.append(Stage(fraction=share, compression=setting))
    return Schedule(name, tuple(stages))


def always_compressed(setting: CompressionSetting) -> Schedule:
    """One stage with `setting` from beginning to end (Tables 2 to 4); the trained model keeps the compressor."""
    return Schedule("always_compressed", (Stage(fraction=1.0, compression=setting),))


def edge_schedule(
    connectors: Sequence[str], fraction: float = 1 / 3, learning_rate_scales: tuple[float, float] = (1.0, 1.0)
) -> Schedule:
    """Trains what connects vision and language first, then everything; no compression.

    Args:
        connectors: Prefixes of the names of the parameters that train in the first stage, or a group's name.
        fraction: Share of the first stage.
        learning_rate_scales: One for each of the two stages.

    Raises:
        ScheduleError: No prefix, or a fraction outside (0, 1).
    """
    if not connectors or not 0 < fraction < 1:
        raise ScheduleError(f"scheme edge: expected prefixes and a fraction in (0, 1), got {connectors} and {fraction}")
    first, second = learning_rate_scales
    return Schedule(
        "edge",
        (
            Stage(fraction=fraction, trainable=tuple(connectors), learning_rate_scale=first),
            Stage(fraction=1 - fraction, learning_rate_scale=second),
        ),
    )


def auroraedge_schedule(num_samples: Sequence[int] = (1, 1, 1)) -> Schedule:
    """AuroraEdge's stages (its Tables 1 and 2) as one run: connectors; then the LLM too; then everything.

    Every stage begins anew, with its own warmup and cosine. Its rate is a factor on the run's peak of 1e-3, its batch
    on the run's 32, and its share of the steps is what its epochs take in those batches.

    Args:
        num_samples: Samples of each stage's data set, in any unit; by default equal.
    """
    steps = [count * epochs / batch for count, (_, _, epochs, batch) in zip(num_samples, _AURORAEDGE, strict=True)]
    _, peak, _, most = _AURORAEDGE[0]
    stages = (
        Stage(
            fraction=own / sum(steps),
            trainable=trainable,
            learning_rate_scale=rate / peak,
            batch_size_scale=batch / most,
        )
        for own, (trainable, rate, _, batch) in zip(steps, _AURORAEDGE, strict=True)
    )
    return Schedule(AURORAEDGE, tuple(stages), restarts=True)
