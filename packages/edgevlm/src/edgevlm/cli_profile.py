"""`edgevlm profile`."""

import json
from typing import Annotated

import typer

from edgevlm.cli_options import Fusion, Preset


def profile(
    preset: Annotated[Preset, typer.Option(help="Architecture.")] = Preset.AURORAEDGE_V_2B,
    fusion: Annotated[Fusion, typer.Option(help="Fusion module.")] = Fusion.COMBINED,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt.")] = 28,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and linear-layer multiply-accumulates of one prefill, from the configuration alone."""
    from edgevlm.profiling.profile import auroraedge_config
    from edgevlm.profiling.profile import profile as count

    counted = count(auroraedge_config(fusion=fusion.value), num_text_tokens=text_tokens)
    fields = {"preset": preset.value, "fusion": fusion.value, "text_tokens": text_tokens,
              "params": counted.num_params, "gmacs_linear": counted.macs_linear / 1e9}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(fields))
        return
    units = f"{counted.num_params:,} parameters ({counted.num_params / 2**30:.3f} x 2^30)"
    costs = f"{counted.macs_linear / 1e9:.1f} G multiply-accumulates of linear layers"
    typer.echo(f"{preset.value}, {fusion.value} fusion: {units};")
    typer.echo(f"{costs} in one prefill with {text_tokens} text tokens")
