"""The command `quantpack`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from quantpack.errors import CorruptPackError, NotAPackError, QuantpackError
from quantpack.inspecting import inspect as inspect_pack
from quantpack.packing import pack as pack_model
from quantpack.report import PartReport
from quantpack.scheme import Granularity, Scheme
from quantpack.unpacking import unpack as unpack_model
from quantpack.verifying import verify as verify_pack
from vlmpress.artifact import ArtifactError
from vlmpress.cli import CheckFailedError, UserError, progress, run

app = typer.Typer(help="INT4 quantization with lossless packing.", no_args_is_help=True, add_completion=False)


@app.command()
def pack(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A model directory, or a plain safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The pack; must not exist.")],
    granularity: Annotated[Granularity, typer.Option(help="What shares one scale.")] = "group",
    group_size: Annotated[int, typer.Option(help="Weights in one group.")] = 128,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="No zero points.")] = False,
) -> None:
    """Quantizes SRC to INT4 and packs it into the directory OUT."""
    scheme = Scheme(granularity=granularity, group_size=group_size, symmetric=symmetric)
    with progress("pack") as bar:
        pack_model(src, out, scheme, on_progress=bar.update)
    typer.echo(_table(inspect_pack(out)))


@app.command()
def unpack(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write; must not exist.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of floating tensors; by default each keeps its own."),
    ] = None,
) -> None:
    """Restores every tensor of PACK under its own name."""
    chosen: torch.dtype | None = getattr(torch, dtype) if dtype else None
    with progress("unpack") as bar:
        unpack_model(pack, out, chosen, bar.update)


@app.command()
def inspect(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack.")],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Says where the bytes of PACK are."""
    reports = inspect_pack(pack)
    typer.echo(json.dumps(_by_part(reports), indent=2) if as_json else _table(reports))


@app.command()
def verify(pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack.")]) -> None:
    """Checks every byte of PACK; exit code 1 when one is wrong."""
    if not pack.is_dir():
        raise UserError(f"{pack}: expected a pack's directory, found none")
    try:
        with progress("verify") as bar:
            verify_pack(pack, bar.update)
    except (CorruptPackError, NotAPackError) as error:
        raise CheckFailedError(str(error)) from error
    typer.echo(f"{pack}: ok")


def _by_part(reports: list[PartReport]) -> dict[str, dict[str, Any]]:
    fields = [asdict(report) for report in reports]
    return {row.pop("part"): row for row in fields}


def _table(reports: list[PartReport]) -> str:
    lines = [
        f"{'part':<9} {'weights':>13} {'int4 bytes':>13} {'compressed':>13} {'CR':>6} {'H/code':>7} {'bits/w':>7} "
        f"{'on disk':>13}"
    ]
    for report in reports:
        lines.append(
            f"{report.part:<9} {report.num_weights:>13,} {report.code_bytes_packed:>13,} "
            f"{report.code_bytes_compressed:>13,} {report.cr_codes:>6.3f} "
            f"{report.entropy_bits_per_code:>7.3f} {report.bits_per_weight:>7.3f} {report.bytes_on_disk:>13,}"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs the command; returns its exit code."""
    return run(app, (QuantpackError, ArtifactError))
