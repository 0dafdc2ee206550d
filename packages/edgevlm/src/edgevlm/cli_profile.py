"""`edgevlm profile`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgevlm.cli_options import Compressor, Fusion
from edgevlm.errors import UnknownPresetError

if TYPE_CHECKING:
    from edgevlm.profiling.profile import Profile


def profile(
    preset: Annotated[
        list[str] | None,
        typer.Option(help="auroraedge-v-2b (also :FUSION), qwen2-vl-2b, qwen2.5-vl-3b, internvl2.5-2b; repeatable."),
    ] = None,
    model: Annotated[list[Path] | None, typer.Option(help="Directory of a saved model; repeatable.")] = None,
    fusion: Annotated[Fusion | None, typer.Option(help="Of the edge model's preset; default combined.")] = None,
    compressor: Annotated[Compressor | None, typer.Option(help="Of the edge model's preset; default mlp.")] = None,
    compressed_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the edge model's preset; default 64.")
    ] = None,
    fusion_layers: Annotated[int | None, typer.Option(min=1, help="Of the edge model's preset; default 1.")] = None,
    text_tokens: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt, template included.")] = 28,
    image: Annotated[str, typer.Option(help="Size of the one image, before a model's own resizing.")] = "640x480",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: an object, of several models a list.")] = False,
) -> None:
    """Parameters, work of one prefill, bytes of weights and KV cache, from the configuration alone."""
    from edgevlm.profiling.layouts import ImageSize
    from edgevlm.profiling.presets import AURORAEDGE, preset_config
    from edgevlm.profiling.profile import profile as count
    from edgevlm.profiling.tables import profile_table

    size = ImageSize.parse(image)
    given = {"fusion": fusion and fusion.value, "compressor": compressor and compressor.value,
             "num_compressed_tokens": compressed_tokens, "num_fusion_layers": fusion_layers}  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    names = preset or ([] if model else [AURORAEDGE])
    if changes and not any(name.partition(":")[0] == AURORAEDGE for name in names):
        raise UnknownPresetError(f"{', '.join(changes)}: expected only with preset {AURORAEDGE}, got {names or model}")
    configs = {name: preset_config(name, **changes) for name in names}
    configs |= {str(path): _saved_config(path) for path in model or []}
    counted = {name: count(config, num_text_tokens=text_tokens, image=size) for name, config in configs.items()}
    if not as_json:
        typer.echo(profile_table(counted))
        return
    fields = [_fields(name, configs[name], str(size), found) for name, found in counted.items()]
    typer.echo(json.dumps(fields if len(fields) > 1 else fields[0]))


def _fields(name: str, config: Any, image: str, counted: "Profile") -> dict[str, Any]:
    from edgevlm.profiling.tables import profile_fields

    choices = {key: getattr(config, key) for key in ("fusion", "compressor") if config.model_type == "edgevlm"}
    return {"preset": name, "model_type": config.model_type, **choices, "image": image, **profile_fields(counted)}


def _saved_config(directory: Path) -> Any:
    from edgevlm.profiling.saved import saved_config

    return saved_config(directory)
