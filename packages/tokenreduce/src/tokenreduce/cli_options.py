"""Options that several commands share, and what their texts mean."""

import math
from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.errors import PolicyError
from tokenreduce.policy import check_factors

FeaturesOption = Annotated[
    Path | None,
    typer.Option("--features", metavar="FILE", help="Safetensors file with one tensor `features` [B, H, W, D]."),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="DIR",
        help="CLIP, SigLIP, SigLIP2 or whole model directory; patches:P, patches:P:SIDE or patches:P:keep: raw pixels.",
    ),
]
LayerOption = Annotated[
    int | None, typer.Option("--layer", help="Hidden state of a tower without a language model; -2 by default.")
]
ImagesArgument = Annotated[list[Path] | None, typer.Argument(metavar="IMAGES...", help="Image files.")]
ModeOption = Annotated[str, typer.Option("--mode", help="residual or literal.")]
FactorsOption = Annotated[str, typer.Option("--factors", help="Pooling factors to choose from, ascending, from 1.")]
NormalizeOption = Annotated[str, typer.Option("--normalize", help="image (each by its own std) or none.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def parse_factors(text: str) -> tuple[int, ...]:
    """Factors from "1,2,3"; raises PolicyError."""
    try:
        factors = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise PolicyError(f"--factors: expected integers with commas between, got {text[:80]!r}") from error
    check_factors(factors)
    return factors


def parse_shares(text: str, factors: tuple[int, ...]) -> tuple[float, ...]:
    """Shares in the order of the factors from "1=.2,2=.5,3=.3"; raises PolicyError."""
    shares: dict[int, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            factor, share = int(name), float(value)
        except ValueError as error:
            raise PolicyError(f"--shares: expected FACTOR=SHARE with commas between, got {text[:80]!r}") from error
        if factor in shares or not math.isfinite(share):
            raise PolicyError(f"--shares: expected each factor once with a finite share, got {text[:80]!r}")
        shares[factor] = share
    if set(shares) != set(factors):
        raise PolicyError(f"--shares: expected a share for each of the factors {list(factors)}, got {sorted(shares)}")
    return tuple(shares[factor] for factor in factors)
