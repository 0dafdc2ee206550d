"""`edgevlm build`."""

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.cli_options import Compressor, Fusion, FusionOrder, Initialisation, Positions
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
    fusion_order: Annotated[
        FusionOrder, typer.Option(help="Combined fusion: cross, then decoder; or text plus what each adds.")
    ] = FusionOrder.SERIAL,
    fusion_layers: Annotated[int, typer.Option(min=1, help="Blocks of each branch of the fusion.")] = 1,
    positions: Annotated[
        Positions, typer.Option(help="'uncompressed' keeps text where it stands beside all visual tokens.")
    ] = Positions.CONTIGUOUS,
    vision_layer: Annotated[
        int | None, typer.Option(help="Index of the encoder's hidden states to use; by default its output.")
    ] = None,
    init: Annotated[
        Initialisation, typer.Option(help="Of the connectors; 'normal' is the paper's N(0, 1), which diverges.")
    ] = Initialisation.SCALED,
    seed: Annotated[int, typer.Option(help="Of the connectors' initialisation.")] = 0,
) -> None:
    """Builds an edge model from a vision encoder and a language model; its connectors are untrained."""
    from transformers.utils import logging as transformers_logging

    from edgevlm.building.build import build as build_model
    from edgevlm.building.parts import load_parts
    from edgevlm.model.configuration import num_patches

    if out.exists():
        raise BuildError(f"{out}: expected a new directory, found one")
    # What it reports at length about damaged checkpoints comes as one line too.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    parts = load_parts(vision, llm)
    if compressed_tokens is None:
        compressed_tokens = num_patches(parts[0].config) if compressor is Compressor.NONE else 64
    model, processor = build_model(
        *parts, num_compressed_tokens=compressed_tokens, fusion=fusion.value, compressor=compressor.value, seed=seed,
        fusion_order=fusion_order.value, num_fusion_layers=fusion_layers, position_mode=positions.value,
        vision_feature_layer=vision_layer, init=init.value,
    )  # fmt: skip
    with whole_directory(out) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    typer.echo(f"{out}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")
