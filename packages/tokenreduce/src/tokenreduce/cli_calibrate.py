"""`tokenreduce calibrate`."""

import json
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

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
    parse_shares,
)
from tokenreduce.cli_sources import read_views
from tokenreduce.policy import ReductionPolicy
from tokenreduce.running_calibration import CalibrationSettings, RunningCalibration
from tokenreduce.wire import policy_to_proto
from vlmpress.artifact import create, write_policy
from vlmpress.cli import UserError
from vlmpress.data import load_records

PRODUCER = "vlmpress-tokenreduce"


def calibrate(
    files: ImagesArgument = None,
    features: FeaturesOption = None,
    encoder: EncoderOption = None,
    layer: LayerOption = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DATASET", help="LLaVA JSON/JSONL or VQA JSONL: its images.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Folder that image paths of DATASET are relative to.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", min=1, help="At most so many images of DATASET, the first ones.")
    ] = None,
    mean_tokens: Annotated[
        float | None, typer.Option("--mean-tokens", help="Wanted mean visual tokens of an image.")
    ] = None,
    shares: Annotated[
        str | None, typer.Option("--shares", help="Wanted share of the images at each factor: 1=.2,2=.5,3=.3.")
    ] = None,
    mode: ModeOption = "residual",
    factors: FactorsOption = "1,2,3",
    normalize: NormalizeOption = "image",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The policy as an artifact; must not exist.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the threshold that gives a wanted mean token count, or wanted shares of the factors."""
    if (mean_tokens is None) == (shares is None):
        raise UserError("expected either --mean-tokens N or --shares 1=A,2=B,3=C")
    chosen = parse_factors(factors)
    settings = CalibrationSettings(
        mean_tokens=mean_tokens,
        factor_shares=None if shares is None else parse_shares(shares, chosen),
        factors=chosen,
        mode=mode,
        normalization=normalize,
    )
    paths = _image_files(files or [], data, images, num_images)
    seen = RunningCalibration(settings)
    # The folder is made first: what is wrong with it shows before the work, and nothing is left of it after an error.
    with nullcontext() if out is None else create(out) as draft:
        for _, view in read_views(features, encoder, layer, paths):
            seen.add([view])
        policy = seen.policy()
        fields = _fields(policy)
        if draft is not None:
            proto = policy_to_proto(policy)
            write_policy(draft.path, proto)
            metrics = {"mean_tokens": fields["mean_tokens"], "num_images": float(fields["num_images"])}
            fields["digest"] = draft.commit(proto, producer=(PRODUCER, version(PRODUCER)), metrics=metrics).digest
    typer.echo(json.dumps(fields) if as_json else _for_people(fields, out))


def _image_files(files: list[Path], data: Path | None, images: Path | None, num_images: int | None) -> list[Path]:
    if data is None:
        if images is not None or num_images is not None:
            raise UserError("--images, --num-images: expected --data DATASET with them, got none")
        return files
    if files:
        raise UserError("expected either --data DATASET or IMAGES..., got both")
    paths = [path for record in load_records(data, images) if record.split != "test" for path in record.images]
    return list(dict.fromkeys(paths))[:num_images]


def _fields(policy: ReductionPolicy) -> dict[str, Any]:
    seen = policy.calibration
    assert seen is not None
    return {
        "tau": policy.tau,
        "mean_tokens": seen.mean_tokens,
        "mode": policy.mode,
        "factors": list(policy.factors),
        "normalize": policy.normalization,
        "num_images": seen.num_images,
        "shares": {str(factor): share for factor, share in zip(policy.factors, seen.shares, strict=True)},
    }


def _for_people(fields: dict[str, Any], out: Path | None) -> str:
    shares = ", ".join(f"{share:.1%} at {factor}" for factor, share in fields["shares"].items())
    line = (
        f"tau {fields['tau']!r}: mean {fields['mean_tokens']:.2f} tokens over {fields['num_images']} images ({shares})"
    )
    return line if out is None else f"{line}\n{out}: {fields['digest']}"
