"""`tokenreduce plan`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.budget import plan_budget
from tokenreduce.cli_options import (
    EncoderOption,
    FactorsOption,
    FeaturesOption,
    ImagesArgument,
    JsonOption,
    LayerOption,
    ModeOption,
    NormalizeOption,
    parse_factors,
)
from tokenreduce.cli_sources import read_views
from tokenreduce.planning import ImagePlan
from tokenreduce.planning import plan as plan_by_policy
from tokenreduce.policy import ReductionPolicy
from tokenreduce.wire import read_policy
from vlmpress.cli import UserError


def plan(
    context: typer.Context,
    images: ImagesArgument = None,
    features: FeaturesOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    tau: Annotated[float | None, typer.Option("--tau", help="Threshold on sigma, greater than 0.")] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="PATH", help="A saved policy: its file, artifact or model.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help="At most so many visual tokens for all images; throws away least."),
    ] = None,
    mode: ModeOption = "residual",
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "image",
    as_json: JsonOption = False,
) -> None:
    """Choose a pooling factor for each image by a threshold, by a saved policy, or within a limit of tokens."""
    if [tau, policy, max_tokens].count(None) != 2:
        raise UserError("expected one of --tau, --policy and --max-tokens")
    chosen = parse_factors(factors)
    if policy is not None:
        _refuse_beside_policy(context)
        rule = read_policy(policy)
    else:
        # Beside a limit tau only stands in: the limit decides.
        rule = ReductionPolicy(tau=1.0 if tau is None else tau, mode=mode, factors=chosen, normalization=normalize)
    if max_tokens is not None and mode != "residual":
        raise UserError(f"--max-tokens: expected --mode residual, got {mode!r}")
    named = list(read_views(features, encoder, layer, images or []))
    views = [view for _, view in named]
    if max_tokens is None:
        plans, _ = plan_by_policy(views, rule)
    else:
        plans = plan_budget(views, max_tokens, rule.factors, rule.normalization)
    _show([name for name, _ in named], plans, rule.factors, as_json)


def _refuse_beside_policy(context: typer.Context) -> None:
    for name in ("mode", "factors", "normalize"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UserError(f"--{name}: expected none beside --policy, which says it")


def _show(names: list[str | None], plans: list[ImagePlan], factors: tuple[int, ...], as_json: bool) -> None:
    mean_tokens = sum(plan.num_tokens for plan in plans) / len(plans)
    sigmas = [{str(factor): sigma for factor, sigma in zip(factors, plan.sigmas, strict=True)} for plan in plans]
    if as_json:
        rows = [
            {"factor": plan.factor, "tokens": plan.num_tokens, "sigma": sigma}
            for plan, sigma in zip(plans, sigmas, strict=True)
        ]
        typer.echo(json.dumps({"images": rows, "mean_tokens": mean_tokens}))
        return
    for index, (name, plan, sigma) in enumerate(zip(names, plans, sigmas, strict=True)):
        shown = "  ".join(f"sigma({factor})={value:.4g}" for factor, value in sigma.items())
        typer.echo(f"{name or f'image {index}'}: factor {plan.factor}, {plan.num_tokens} tokens  {shown}")
    typer.echo(f"mean: {mean_tokens:.2f} tokens")
