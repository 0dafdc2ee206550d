"""What a stage costs: visual tokens, compression ratio (Equation 3) and the TFLOPs of a prefill."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stagetrain.compressors import compressor_named
from stagetrain.errors import ScheduleError
from stagetrain.schedules.schedule import Schedule, Stage
from stagetrain.schedules.schemes import PAPER_LAYERS, named_schedule
from stagetrain.schedules.setting import CompressionSetting

PAPER_VISUAL_TOKENS = 576

PAPER_TEXT_TOKENS = 61.75
"""Text tokens at which LLaVA-1.5-7B's layers take the 8.26 TFLOPs that Table 4 prints; the paper gives no number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """Sizes of one decoder layer with gated feed-forward and grouped-query attention."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> "DecoderShape":
        """Shape of a Hugging Face configuration's text model."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )

    @property
    def layer_parameters(self) -> int:
        """Weights of a layer's linear maps."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)


PAPER_SHAPE = DecoderShape(
    hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, head_dim=128
)
"""Vicuna-7B, the decoder of LLaVA-1.5-7B."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of a stage.

    Attributes:
        stage: The stage.
        visual_tokens: Visual tokens summed over all decoder layers.
        cr_percent: Uncompressed over compressed visual tokens, percent.
        prefill_tflops: TFLOPs of one prefill; None where the decoder's shape is not known.
    """

    stage: Stage
    visual_tokens: int
    cr_percent: float
    prefill_tflops: float | None


@dataclass(frozen=True, slots=True)
class AverageCost:
    """What a run costs on average, stages weighted by their share of the steps; fields as `StageCost`'s."""

    visual_tokens: float
    cr_percent: float
    prefill_tflops: float | None


def visual_token_count(num_layers: int, num_visual_tokens: int, setting: CompressionSetting | None) -> int:
    """Visual tokens summed over `num_layers`: all before the setting's layer, what its compressor leaves from there on.

    The tokens are taken as a square grid where they make one, else as one row.

    Raises:
        ScheduleError: A number is out of range.
    """
    if num_layers < 1 or num_visual_tokens < 1:
        raise ScheduleError(f"cost: expected positive layers and tokens, got {num_layers} and {num_visual_tokens}")
    if setting is None:
        return num_layers * num_visual_tokens
    if setting.layer >= num_layers:
        raise ScheduleError(f"cost: expected a layer below {num_layers}, got {setting.layer}")
    side = math.isqrt(num_visual_tokens)
    sides = (side, side) if side * side == num_visual_tokens else (1, num_visual_tokens)
    left = compressor_named(setting.compressor).count(sides, setting.stride)
    return setting.layer * num_visual_tokens + (num_layers - setting.layer) * left


def compression_ratio_percent(num_layers: int, num_visual_tokens: int, setting: CompressionSetting | None) -> float:
    """Equation 3: N L / ((N - K) L_out + K L), in percent; 100 without compression."""
    return 100 * num_layers * num_visual_tokens / visual_token_count(num_layers, num_visual_tokens, setting)


def prefill_tflops(shape: DecoderShape, num_layers: int, visual_tokens: float, num_text_tokens: float) -> float:
    """TFLOPs of the linear maps of all decoder layers in one prefill, as Table 4 counts them.

    Two for every weight and token; neither attention's products nor the head.

    Args:
        shape: Of a layer.
        num_layers: Decoder layers.
        visual_tokens: Summed over all layers.
        num_text_tokens: In every layer.
    """
    return 2 * shape.layer_parameters * (visual_tokens + num_layers * num_text_tokens) / 1e12


def stage_cost(
    stage: Stage,
    num_layers: int,
    num_visual_tokens: int,
    shape: DecoderShape | None = None,
    num_text_tokens: float = PAPER_TEXT_TOKENS,
) -> StageCost:
    """Cost of a stage in a decoder of `num_layers` with `num_visual_tokens` an image.

    Without a shape, 32 layers and 576 visual tokens are taken for LLaVA-1.5-7B's, and others have no TFLOPs.
    """
    tokens = visual_token_count(num_layers, num_visual_tokens, stage.compression)
    ratio = compression_ratio_percent(num_layers, num_visual_tokens, stage.compression)
    if shape is None and (num_layers, num_visual_tokens) == (PAPER_LAYERS, PAPER_VISUAL_TOKENS):
        shape = PAPER_SHAPE
    tflops = None if shape is None else prefill_tflops(shape, num_layers, tokens, num_text_tokens)
    return StageCost(stage, tokens, ratio, tflops)


def schedule_costs(
    schedule: Schedule,
    num_layers: int,
    num_visual_tokens: int,
    shape: DecoderShape | None = None,
    num_text_tokens: float = PAPER_TEXT_TOKENS,
) -> tuple[StageCost, ...]:
    """Cost of every stage; see `stage_cost`."""
    return tuple(stage_cost(stage, num_layers, num_visual_tokens, shape, num_text_tokens) for stage in schedule.stages)


def average_cost(costs: Sequence[StageCost]) -> AverageCost:
    """Average over a run of these stages; the ratio is that of the average number of tokens."""
    tokens = sum(cost.stage.fraction * cost.visual_tokens for cost in costs)
    uncompressed = costs[0].cr_percent * costs[0].visual_tokens
    tflops = [cost.prefill_tflops for cost in costs]
    known = [cost.stage.fraction * value for cost, value in zip(costs, tflops, strict=True) if value is not None]
    return AverageCost(tokens, uncompressed / tokens, sum(known) if len(known) == len(costs) else None)


def plan_schedule(scheme: str, num_layers: int, num_visual_tokens: int) -> tuple[Schedule, tuple[StageCost, ...]]:
    """The named scheme for a decoder of `num_layers`, and what each of its stages costs.

    Raises:
        UnknownSchemeError: No such scheme.
        ScheduleError: Fewer than 2 layers or no visual token.
    """
    schedule = named_schedule(scheme, num_layers)
    return schedule, schedule_costs(schedule, num_layers, num_visual_tokens)
