"""The command `tokenreduce`."""

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file

import vlmpress.cli
from tokenreduce.calibration import calibrate
from tokenreduce.errors import FeatureError, PolicyError, TokenReduceError
from tokenreduce.planning import plan
from tokenreduce.policy import ReductionPolicy

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Fewer visual tokens where an image says little.")

FeaturesOption = Annotated[
    Path, typer.Option("--features", help="Safetensors file with one tensor `features` [B, H, W, D].")
]
ModeOption = Annotated[str, typer.Option("--mode", help="residual or literal.")]
FactorsOption = Annotated[str, typer.Option("--factors", help="Pooling factors to choose from, ascending, from 1.")]
NormalizeOption = Annotated[str, typer.Option("--normalize", help="image (each by its own std) or none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.command("plan")
def plan_command(
    features: FeaturesOption,
    tau: Annotated[float, typer.Option("--tau", help="Threshold on sigma, greater than 0.")],
    mode: ModeOption = "residual",
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "image",
    as_json: JsonOption = False,
) -> None:
    """Choose a pooling factor for each image."""
    policy = ReductionPolicy(tau=tau, mode=mode, factors=_parse_factors(factors), normalization=normalize)
    images, mean_tokens = plan(_read_features(features), policy)
    sigmas = [
        {str(factor): sigma for factor, sigma in zip(policy.factors, image.sigmas, strict=True)} for image in images
    ]
    if as_json:
        rows = [
            {"factor": image.factor, "tokens": image.num_tokens, "sigma": sigma}
            for image, sigma in zip(images, sigmas, strict=True)
        ]
        print(json.dumps({"images": rows, "mean_tokens": mean_tokens}))
        return
    for index, (image, sigma) in enumerate(zip(images, sigmas, strict=True)):
        shown = "  ".join(f"sigma({factor})={value:.4g}" for factor, value in sigma.items())
        print(f"image {index}: factor {image.factor}, {image.num_tokens} tokens  {shown}")
    print(f"mean: {mean_tokens:.2f} tokens")


@app.command("calibrate")
def calibrate_command(
    features: FeaturesOption,
    mean_tokens: Annotated[float, typer.Option("--mean-tokens", help="Wanted mean visual tokens of an image.")],
    mode: ModeOption = "residual",
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "image",
    as_json: JsonOption = False,
) -> None:
    """Find the threshold that gives a wanted mean token count."""
    chosen = _parse_factors(factors)
    policy = calibrate([_read_features(features)], mean_tokens, factors=chosen, mode=mode, normalization=normalize)
    if as_json:
        result: dict[str, Any] = {"tau": policy.tau, "mean_tokens": policy.calibrated_mean_tokens}
        print(json.dumps(result | {"mode": mode, "factors": list(chosen), "normalize": normalize}))
    else:
        print(f"tau {policy.tau!r}: mean {policy.calibrated_mean_tokens:.2f} tokens")


def main() -> int:
    """Runs the command and gives its exit code."""
    return vlmpress.cli.run(app, (TokenReduceError,))


def _parse_factors(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PolicyError(f"--factors: expected integers with commas between, got {text!r}") from error


def _read_features(path: Path) -> torch.Tensor:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise FeatureError(f"{path}: expected a safetensors file, got {error}") from error
    if list(tensors) != ["features"]:
        raise FeatureError(f"{path}: expected one tensor named 'features', got {sorted(tensors)[:8]}")
    return tensors["features"]
