"""`stagetrain schemes`: the paper's schemes and what they cost in a decoder."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stagetrain.errors import ConfigError
from stagetrain.figures import check_format, save_figure
from stagetrain.schedules.costs import DecoderShape, StageCost, average_cost, schedule_costs
from stagetrain.schedules.schedule_plot import schedule_figure
from stagetrain.schedules.schemes import PLAIN, TABLE_1, named_schedule

_LAYERS, _TOKENS = 32, 576


def schemes(
    layers: Annotated[int | None, typer.Option(min=2, help=f"Decoder layers.  [default: {_LAYERS}]")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Visual tokens of an image.")] = _TOKENS,
    text_tokens: Annotated[int, typer.Option(min=0, help="Text tokens of a prompt, with --model.")] = 64,
    model: Annotated[Path | None, typer.Option(help="Model directory whose decoder is counted.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw tokens and FLOPs over a run, .png or .svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Shows the schemes of the paper's Table 1 and what their stages cost.

    TFLOPs are of one prefill, linear maps only, as the paper's Table 4 counts them: of LLaVA-1.5-7B for 32 layers and
    576 tokens, else of the decoder --model names.
    """
    if plot is not None:
        check_format(plot)
    shape = None
    if model is not None:
        if layers is not None:
            raise ConfigError(f"--layers: expected it or --model, got {layers} and {model}")
        layers, shape = _decoder(model)
    num_layers = layers or _LAYERS

    def costs(name: str) -> tuple[StageCost, ...]:
        schedule = named_schedule(name, num_layers)
        if shape is None:
            return schedule_costs(schedule, num_layers, tokens)
        return schedule_costs(schedule, num_layers, tokens, shape, text_tokens)

    found = {name: costs(name) for name in TABLE_1}
    if plot is not None:
        save_figure(schedule_figure({PLAIN: costs(PLAIN), **found}), plot)
    if as_json:
        typer.echo(json.dumps({"schemes": [_fields(name, stages) for name, stages in found.items()]}))
    else:
        typer.echo(_table(found))


def _decoder(directory: Path) -> tuple[int, DecoderShape]:
    # The import takes seconds, and most calls need none of it.
    from transformers import AutoConfig

    from vlmpress.artifact import import_model_code

    try:
        import_model_code(directory)
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: expected a model directory, got {error}") from error
    return config.get_text_config().num_hidden_layers, DecoderShape.of(config)


def _fields(name: str, stages: tuple[StageCost, ...]) -> dict[str, Any]:
    average = average_cost(stages)
    return {
        "name": name,
        "stages": [
            {
                "fraction": cost.stage.fraction,
                "layer": cost.stage.compression and cost.stage.compression.layer,
                "stride": cost.stage.compression and cost.stage.compression.stride,
                "visual_tokens": cost.visual_tokens,
                "cr_percent": cost.cr_percent,
                "prefill_tflops": cost.prefill_tflops,
            }
            for cost in stages
        ],
        "average": {
            "visual_tokens": average.visual_tokens,
            "cr_percent": average.cr_percent,
            "prefill_tflops": average.prefill_tflops,
        },
    }


def _table(found: dict[str, tuple[StageCost, ...]]) -> str:
    lines = [f"{'scheme':<30}{'share':>7}{'layer':>7}{'stride':>8}{'tokens':>9}{'CR %':>9}{'TFLOPs':>9}"]
    for name, stages in found.items():
        for cost in stages:
            setting = cost.stage.compression
            place = ("-", "-") if setting is None else (str(setting.layer), str(setting.stride))
            lines.append(
                f"{name:<30}{cost.stage.fraction:>7.2f}{place[0]:>7}{place[1]:>8}"
                + _numbers(cost.visual_tokens, cost.cr_percent, cost.prefill_tflops)
            )
        average = average_cost(stages)
        lines.append(
            f"{'  on average':<52}" + _numbers(average.visual_tokens, average.cr_percent, average.prefill_tflops)
        )
    return "\n".join(lines)


def _numbers(visual_tokens: float, cr_percent: float, tflops: float | None) -> str:
    return f"{visual_tokens:>9.0f}{cr_percent:>9.2f}" + (f"{'-':>9}" if tflops is None else f"{tflops:>9.3g}")
