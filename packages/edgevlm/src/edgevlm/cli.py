"""The command `edgevlm`."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import vlmpress.cli
from edgevlm.errors import BuildError, EdgeVlmError, ImageError
from vlmpress.artifact import ArtifactError, whole_directory

if TYPE_CHECKING:
    from edgevlm.events import Finish

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Build, inspect and question edge VLMs.")


class Fusion(StrEnum):
    """Fusion modules of the paper."""

    NONE = "none"
    CROSS = "cross"
    DECODER = "decoder"
    COMBINED = "combined"


class Compressor(StrEnum):
    """Ways to fewer visual tokens."""

    MLP = "mlp"
    NONE = "none"


class Preset(StrEnum):
    """Known architectures."""

    AURORAEDGE_V_2B = "auroraedge-v-2b"


class Dtype(StrEnum):
    """Types of weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@app.command()
def build(
    vision: Annotated[Path, typer.Option(help="Directory of a SigLIP2, SigLIP or CLIP model and its image processor.")],
    llm: Annotated[Path, typer.Option(help="Directory of a Qwen2 or Llama causal model and its tokenizer.")],
    out: Annotated[Path, typer.Option(help="New directory for the edge model.")],
    compressed_tokens: Annotated[
        int | None, typer.Option(min=1, help="Visual tokens of an image the LLM sees; 64, or without a compressor all.")
    ] = None,
    compressor: Annotated[Compressor, typer.Option(help="'none' leaves its place to a reducer.")] = Compressor.MLP,
    fusion: Annotated[Fusion, typer.Option(help="Fusion module.")] = Fusion.COMBINED,
    seed: Annotated[int, typer.Option(help="Of the connectors' initialisation.")] = 0,
) -> None:
    """Builds an edge model from a vision encoder and a language model; its connectors are untrained."""
    from edgevlm.build import build as build_model
    from edgevlm.configuration import num_patches
    from edgevlm.parts import load_parts

    if out.exists():
        raise BuildError(f"{out}: expected a new directory, found one")
    parts = load_parts(vision, llm)
    if compressed_tokens is None:
        compressed_tokens = 64 if compressor is Compressor.MLP else num_patches(parts[0].config)
    model, processor = build_model(
        *parts, num_compressed_tokens=compressed_tokens, fusion=fusion.value, compressor=compressor.value, seed=seed
    )
    with whole_directory(out) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    print(f"{out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


@app.command()
def profile(
    preset: Annotated[Preset, typer.Option(help="Architecture.")] = Preset.AURORAEDGE_V_2B,
    fusion: Annotated[Fusion, typer.Option(help="Fusion module.")] = Fusion.COMBINED,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt.")] = 28,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and linear-layer multiply-accumulates of one prefill, from the configuration alone."""
    from edgevlm.profile import auroraedge_config
    from edgevlm.profile import profile as count

    counted = count(auroraedge_config(fusion=fusion.value), num_text_tokens=text_tokens)
    fields = {"preset": preset.value, "fusion": fusion.value, "text_tokens": text_tokens,
              "params": counted.num_params, "gmacs_linear": counted.macs_linear / 1e9}  # fmt: skip
    if as_json:
        print(json.dumps(fields))
        return
    units = f"{counted.num_params:,} parameters ({counted.num_params / 2**30:.3f} x 2^30)"
    costs = f"{counted.macs_linear / 1e9:.1f} G multiply-accumulates of linear layers"
    print(f"{preset.value}, {fusion.value} fusion: {units};")
    print(f"{costs} in one prefill with {text_tokens} text tokens")


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="Directory of any image-text-to-text model, or a pack.")],
    image: Annotated[Path | None, typer.Argument(help="PNG or JPEG; without it, a text-only question.")] = None,
    prompt: Annotated[str, typer.Option(help="The question.")] = "Describe the image.",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    max_visual_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of visual tokens; a model with a reduction policy keeps to it.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of an unquantized model's weights.")] = Dtype.FLOAT32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, no stream.")] = False,
) -> None:
    """Answers one question and prints the answer as it comes."""
    import torch
    from transformers.utils import logging as transformers_logging

    from edgevlm.engine import Engine
    from edgevlm.events import GeneratedToken

    data = None if image is None else _read_image(image)
    transformers_logging.disable_progress_bar()
    engine = Engine.load(model, dtype=getattr(torch, dtype.value))
    for event in engine.generate(data, prompt, max_new_tokens, max_visual_tokens):
        if not isinstance(event, GeneratedToken):
            print(json.dumps(_summary(event)) if as_json else "")
        elif not as_json:
            print(event.text, end="", flush=True)


def _summary(finish: "Finish") -> dict[str, object]:
    return asdict(finish) | {"reason": finish.reason.value}


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: expected a readable image file, got: {error.strerror}") from error


def main() -> int:
    """Runs the command; gives its exit code."""
    return vlmpress.cli.run(app, (EdgeVlmError, ArtifactError))
