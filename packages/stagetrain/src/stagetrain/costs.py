"""What a stage costs: visual tokens, compression ratio (Equation 3) and, for the paper's model, TFLOPs."""

import math
from dataclasses import dataclass

from stagetrain.errors import ScheduleError
from stagetrain.schedule import PAPER_LAYERS, Schedule, Stage, named_schedule

PAPER_VISUAL_TOKENS = 576
_PAPER_PREFILL_TFLOPS = 8.26
_PAPER_LAYER_PARAMETERS = 202.376e6


@dataclass(frozen=True, slots=True)
class StageCost:
    """Cost of a stage.

    Attributes:
        stage: The stage.
        visual_tokens: Visual tokens summed over all decoder layers.
        cr_percent: Uncompressed over compressed visual tokens, percent.
        prefill_tflops: TFLOPs of one prefill of the paper's model; None for any other shape.
    """

    stage: Stage
    visual_tokens: int
    cr_percent: float
    prefill_tflops: float | None


def visual_token_count(num_layers: int, num_visual_tokens: int, layer: int | None, stride: int | None) -> int:
    """Visual tokens summed over `num_layers`: all before `layer`, windows of `stride` from there on.

    A remainder forms a last, smaller window.

    Raises:
        ScheduleError: A number is out of range.
    """
    if num_layers < 1 or num_visual_tokens < 1:
        raise ScheduleError(f"cost: expected positive layers and tokens, got {num_layers} and {num_visual_tokens}")
    if layer is None or stride is None:
        return num_layers * num_visual_tokens
    if not 0 <= layer < num_layers or stride < 1:
        raise ScheduleError(f"cost: expected a layer below {num_layers} and a stride, got {layer} and {stride}")
    return layer * num_visual_tokens + (num_layers - layer) * math.ceil(num_visual_tokens / stride)


def compression_ratio_percent(num_layers: int, num_visual_tokens: int, layer: int | None, stride: int | None) -> float:
    """Equation 3: N L / ((N - K) ceil(L / S) + K L), in percent; 100 without compression."""
    tokens = visual_token_count(num_layers, num_visual_tokens, layer, stride)
    return 100 * num_layers * num_visual_tokens / tokens


def paper_prefill_tflops(visual_tokens: int) -> float:
    """TFLOPs of one prefill of LLaVA-1.5-7B (Table 4): 2 per parameter of a decoder layer for every token pooled away.

    Defined only for that model: 32 layers, 576 visual tokens an image.
    """
    saved = PAPER_LAYERS * PAPER_VISUAL_TOKENS - visual_tokens
    return _PAPER_PREFILL_TFLOPS - 2 * _PAPER_LAYER_PARAMETERS * saved / 1e12


def stage_cost(stage: Stage, num_layers: int, num_visual_tokens: int) -> StageCost:
    """Cost of a stage in a decoder of `num_layers` with `num_visual_tokens` an image."""
    layer, stride = _place(stage)
    tokens = visual_token_count(num_layers, num_visual_tokens, layer, stride)
    ratio = compression_ratio_percent(num_layers, num_visual_tokens, layer, stride)
    is_paper = (num_layers, num_visual_tokens) == (PAPER_LAYERS, PAPER_VISUAL_TOKENS)
    return StageCost(stage, tokens, ratio, paper_prefill_tflops(tokens) if is_paper else None)


def plan_schedule(scheme: str, num_layers: int, num_visual_tokens: int) -> tuple[Schedule, tuple[StageCost, ...]]:
    """The named scheme for a decoder of `num_layers`, and what each of its stages costs.

    Raises:
        UnknownSchemeError: No such scheme.
        ScheduleError: Fewer than 2 layers or no visual token.
    """
    schedule = named_schedule(scheme, num_layers)
    return schedule, tuple(stage_cost(stage, num_layers, num_visual_tokens) for stage in schedule.stages)


def _place(stage: Stage) -> tuple[int | None, int | None]:
    setting = stage.compression
    return (None, None) if setting is None else (setting.layer, setting.stride)
