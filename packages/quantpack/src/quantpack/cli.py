"""The command `quantpack`."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from quantpack import shapes
from quantpack.calibration.dataset import QuestionFile
from quantpack.cli_options import MethodName, method_of
from quantpack.cli_tables import by_part, pack_table, shape_fields, shape_table, sweep_table, times_table
from quantpack.errors import CorruptPackError, NotAPackError, OutputExistsError, QuantpackError
from quantpack.inspecting import inspect as inspect_pack
from quantpack.methods.ecm import Rounding
from quantpack.question_packing import pack_on_questions, pack_searched, sweep_on_questions
from quantpack.recipe import Embeddings, PartRecipe, Recipe
from quantpack.scheme import Axis, Granularity, Scheme, agq_blocks
from quantpack.search.options import EcmSearch
from quantpack.sweeping import standard_settings
from quantpack.timing import time_pack
from quantpack.unpacking import unpack as unpack_model
from quantpack.verifying import verify as verify_pack
from vlmpress.artifact import ArtifactError
from vlmpress.cli import CheckFailedError, UserError, progress, run
from vlmpress.data import DataError

app = typer.Typer(help="INT4 quantization with lossless packing.", no_args_is_help=True, add_completion=False)

Bits = Annotated[int, typer.Option(help="Of one code: 2 to 4.")]
GroupSize = Annotated[int, typer.Option(help="Weights in one group; with agq, of the fine block.")]
AxisOption = Annotated[
    Axis | None,
    typer.Option(help="What a channel is: an output (row), which is the default, or an input (column)."),
]
Calibration = Annotated[
    Path | None, typer.Option(metavar="DATA", help="LLaVA JSON/JSONL, or JSONL of image, question, answer.")
]
Images = Annotated[Path | None, typer.Option(help="Folder that image paths of DATA are relative to.")]
NumSamples = Annotated[int, typer.Option(help="Questions of DATA to calibrate on, of split train where it has splits.")]
NumQuestions = Annotated[int, typer.Option(help="Questions to measure accuracy on; a search asks those of train.")]
MaxDrop = Annotated[
    float | None, typer.Option(help="ECM's search: layouts and scaling that cost each part at most so much accuracy.")
]
AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command()
def pack(
    src: Annotated[Path, typer.Argument(metavar="SRC", help="A model directory, or a plain safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The pack; must not exist.")],
    bits: Bits = 4,
    granularity: Annotated[Granularity, typer.Option(help="What shares one scale.")] = "group",
    group_size: GroupSize = 128,
    rows: Annotated[int, typer.Option(help="Channels that share a scale, with --granularity rows.")] = 2,
    axis: AxisOption = None,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="No zero points.")] = False,
    method: Annotated[MethodName, typer.Option(help="How codes are found.")] = "rtn",
    rounding: Annotated[Rounding, typer.Option(help="gptq: with error feedback; needs --calibration.")] = "nearest",
    alpha: Annotated[float | None, typer.Option(help="With ecm: scales weights by max|X|^alpha.")] = None,
    embeddings: Annotated[Embeddings, typer.Option(help="int4: token embeddings and output head too.")] = "keep",
    calibration: Calibration = None,
    images: Images = None,
    num_samples: NumSamples = 64,
    num_questions: NumQuestions = 500,
    max_drop: MaxDrop = None,
) -> None:
    """Quantizes SRC to INT4 and packs it into the directory OUT."""
    data = None
    if calibration is not None:
        data = QuestionFile(file=calibration, images=images, num_samples=num_samples, num_questions=num_questions)
    if max_drop is not None:
        if data is None:
            raise UserError("--max-drop: expected --calibration, for accuracy is measured on its questions")
        search = EcmSearch(max_drop=max_drop, bits=bits, group_size=group_size, axis=axis, rounding=rounding)
        _pack_searched(src, out, data, search)
    else:
        scheme = Scheme(
            bits=bits,
            granularity=granularity,
            group_size=group_size,
            num_rows=rows,
            blocks=agq_blocks(group_size),
            axis=axis or "out",
            symmetric=symmetric,
        )
        part = PartRecipe(scheme=scheme, method=method_of(method, rounding, alpha))
        with progress("pack") as bar:
            pack_on_questions(src, out, Recipe(default=part, embeddings=embeddings), data, bar.update)
    typer.echo(pack_table(inspect_pack(out)))


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
def export(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack of a model.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The model directory to write; must not exist.")],
) -> None:
    """Writes PACK as a model in the format compressed-tensors (pack-quantized), for other runtimes."""
    from quantpack.exporting import export_compressed_tensors

    with progress("export") as bar:
        export_compressed_tensors(pack, out, bar.update)


@app.command()
def inspect(
    pack: Annotated[Path | None, typer.Argument(metavar="PACK", help="A pack.")] = None,
    as_json: AsJson = False,
    config: Annotated[
        Path | None, typer.Option("--shapes", metavar="CONFIG", help="A config.json: what quantizing would save.")
    ] = None,
) -> None:
    """Says where the bytes of PACK are, or what the shapes of a model alone tell."""
    if (pack is None) == (config is None):
        raise UserError("inspect: expected a PACK or --shapes CONFIG")
    if config is not None:
        counts = shapes.count_weights(config)
        typer.echo(json.dumps(shape_fields(counts), indent=2) if as_json else shape_table(counts))
    elif pack is not None:
        reports = inspect_pack(pack)
        typer.echo(json.dumps(by_part(reports), indent=2) if as_json else pack_table(reports))


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


@app.command()
def sweep(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model directory.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for sweep.json and sweep.svg; must not exist.")],
    calibration: Annotated[Path, typer.Option(metavar="DATA", help="As for pack; has the questions too.")],
    images: Images = None,
    bits: Bits = 4,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="No zero points.")] = False,
    group_size: GroupSize = 128,
    axis: AxisOption = None,
    num_samples: NumSamples = 64,
    num_questions: NumQuestions = 500,
    max_drop: MaxDrop = None,
    as_json: AsJson = False,
) -> None:
    """Quantizes MODEL in every standard way and draws compression against accuracy."""
    if out.exists():
        raise OutputExistsError(f"{out}: expected a path that does not exist yet")
    data = QuestionFile(file=calibration, images=images, num_samples=num_samples, num_questions=num_questions)
    search = None
    if max_drop is not None:
        search = EcmSearch(max_drop=max_drop, bits=bits, group_size=group_size, axis=axis)
    with progress("sweep") as bar:
        settings = standard_settings(bits=bits, symmetric=symmetric)
        found = sweep_on_questions(model, settings, search, data, bar.update)
    picture = found.svg()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as name:
        draft = Path(name) / out.name
        draft.mkdir()
        (draft / "sweep.json").write_text(json.dumps(found.as_fields(), indent=2) + "\n", encoding="utf-8")
        (draft / "sweep.svg").write_text(picture, encoding="utf-8")
        draft.rename(out)
    typer.echo(json.dumps(found.as_fields(), indent=2) if as_json else sweep_table(found))


@app.command()
def bench(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack.")],
    rounds: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Times decoding, verifying and loading PACK on this machine."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with progress("bench") as bar:
        found = time_pack(pack, rounds, bar.update)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else times_table(found))


def _pack_searched(src: Path, out: Path, data: QuestionFile, search: EcmSearch) -> None:
    with progress("search") as bar:
        _, found = pack_searched(src, out, search, data, bar.update)
    for part, result in found.parts.items():
        typer.echo(
            f"{part:<9} CR {result.agq.trials[0].cr_codes:.3f} -> {result.chosen.cr_codes:.3f}, "
            f"alpha {result.chosen.alpha:g}, accuracy {result.chosen.accuracy:.4f}, floor {result.agq.floor:.4f}"
        )
    typer.echo(f"accuracy  {found.full_accuracy:.4f} -> {found.accuracy:.4f}")


def main() -> int:
    """Runs the command; returns its exit code."""
    return run(app, (QuantpackError, ArtifactError, DataError))
