"""`edgevlm build`."""

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.cli_options import Compressor, Fusion
from edgevlm.errors import BuildError
from vlmpress.artifact import whole_directory


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
    from edgevlm.building.build import build as build_model
    from edgevlm.building.parts import load_parts
    from edgevlm.model.configuration import num_patches

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
    typer.echo(f"{out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
