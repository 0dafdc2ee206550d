"""`tokenreduce bench`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tokenreduce.bench_models import PRESETS, encoder_work, load_prompts, preset_work
from tokenreduce.cli_options import EncoderOption, FactorsOption, ImagesArgument, JsonOption, parse_factors
from tokenreduce.families import family_of
from tokenreduce.policy import ReductionPolicy
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.image_downsampling import ImageDownsampling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import Reducer, VisualGrid
from tokenreduce.running_calibration import CalibrationSettings, RunningCalibration
from tokenreduce.timing import dfmr_cost, prefill_times
from tokenreduce.wire import read_policy
from vlmpress.cli import UserError


def bench(
    images: ImagesArgument = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help=f"An encoder of random weights: {', '.join(PRESETS)}.")
    ] = None,
    encoder: EncoderOption = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="DIR", help="Time a whole model's prefill under each reducer."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="PATH", help="DFMR's with --model; by default half of the tokens are kept."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="The text beside each image, with --model.")
    ] = "Describe the image.",
    factors: FactorsOption = "1,2,3",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time, with --preset.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs, of which the median counts.")] = 5,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the processor.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Time DFMR beside the vision encoder that feeds it, or a whole model's prefill under each reducer.

    IMAGES are what --encoder and --model see; --preset takes noise.
    """
    if [preset, encoder, model].count(None) != 2:
        raise UserError("expected one of --preset, --encoder and --model")
    if preset is None and not images:
        raise UserError("IMAGES: expected at least one image file beside --encoder and --model, got none")
    if preset is not None and images:
        raise UserError("IMAGES: expected none beside --preset, got some")
    if policy is not None and model is None:
        raise UserError("--policy: expected --model with it")
    torch.set_num_threads(threads)
    chosen, paths = parse_factors(factors), images or []
    if model is not None:
        typer.echo(_prefill(model, paths, prompt, policy, chosen, repeats, as_json))
    elif preset is not None:
        typer.echo(_cost(preset, preset_work(preset, batch_size), chosen, repeats, as_json))
    else:
        assert encoder is not None
        typer.echo(_cost(encoder, encoder_work(encoder, paths), chosen, repeats, as_json))


def _cost(
    name: str, work: Callable[[], list[VisualGrid]], factors: tuple[int, ...], repeats: int, as_json: bool
) -> str:
    cost = dfmr_cost(work, factors=factors, repeats=repeats)
    if as_json:
        fields: dict[str, Any] = {
            "encoder": name,
            "threads": torch.get_num_threads(),
            "num_views": cost.num_views,
            "grid": list(cost.grid),
            "encoder_ms": cost.encoder_ms,
        }
        for mode, dfmr_ms in cost.dfmr_ms.items():
            fields[mode] = {"dfmr_ms": dfmr_ms, "share_of_encoder": cost.share(mode)}
        return json.dumps(fields)
    lines = [f"{cost.num_views} views of {'x'.join(map(str, cost.grid))}: encoder {cost.encoder_ms:.2f} ms"]
    lines += [f"DFMR, {mode}: {ms:.2f} ms, {cost.share(mode):.2%}" for mode, ms in cost.dfmr_ms.items()]
    return "\n".join(lines)


def _prefill(
    directory: Path,
    paths: list[Path],
    prompt: str,
    policy_path: Path | None,
    factors: tuple[int, ...],
    repeats: int,
    as_json: bool,
) -> str:
    model, calls = load_prompts(directory, paths, prompt)
    family = family_of(model)
    with torch.no_grad():
        views = [list(family.encode(model, call).grids) for call in calls]
    policy = _half(views, factors) if policy_path is None else read_policy(policy_path)
    reducers = _reducers(policy, views, family)
    rows = prefill_times(model, calls, reducers, repeats)
    if as_json:
        fields = [
            {"reducer": row.name, "visual_tokens": row.visual_tokens, "prefill_ms": row.prefill_ms} for row in rows
        ]
        return json.dumps({"tau": policy.tau, "threads": torch.get_num_threads(), "rows": fields})
    full = rows[0].prefill_ms
    lines = [f"{'':<22}{'visual tokens':>14}{'prefill, ms':>14}{'of full':>10}"]
    lines += [
        f"{row.name:<22}{row.visual_tokens:>14.1f}{row.prefill_ms:>14.2f}{row.prefill_ms / full:>10.1%}" for row in rows
    ]
    return "\n".join(lines)


def _half(views: list[list[VisualGrid]], factors: tuple[int, ...]) -> ReductionPolicy:
    """The policy that keeps about half of the tokens of these images."""
    flat = [view for image in views for view in image]
    least, full = (sum(view.num_tokens(factor) for view in flat) / len(flat) for factor in (factors[-1], 1))
    calibration = RunningCalibration(CalibrationSettings(mean_tokens=max(full / 2, least), factors=factors))
    calibration.add(flat)
    return calibration.policy()


def _reducers(policy: ReductionPolicy, views: list[list[VisualGrid]], family: Any) -> dict[str, Reducer | None]:
    """DFMR, fixed pooling, and rivals that keep DFMR's mean number of tokens of a view, as far as the model can."""
    dfmr = DfmrReducer(policy)
    left = [len(grid.tokens) for image in views for grid in dfmr.reduce(image, rows=[0] * len(image))]
    count = max(1, round(sum(left) / len(left)))
    contextual = count // 7
    reducers: dict[str, Reducer | None] = {"full": None, "dfmr": dfmr}
    reducers |= {f"pooling by {factor}": FixedPooling(factor=factor) for factor in policy.factors[1:]}
    if family.shrinks_pixels:
        reducers |= {f"image by {factor}": ImageDownsampling(factor=factor) for factor in policy.factors[1:]}
    reducers |= {f"random drop to {count}": RandomDrop(num_tokens=count)}
    if family.gives_attention:
        selection = AttentionSelection(num_dominant=count - contextual, num_contextual=contextual)
        reducers |= {f"attention to {count}": selection}
    return reducers | {f"merging to {count}": TokenMerging(num_tokens=count)}
