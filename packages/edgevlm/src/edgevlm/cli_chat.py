"""`edgevlm chat`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli_options import Dtype
from edgevlm.errors import ImageError

if TYPE_CHECKING:
    from edgevlm.serving.events import Finish


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

    from edgevlm.serving.engine import Engine
    from edgevlm.serving.events import GeneratedToken

    data = None if image is None else _read_image(image)
    transformers_logging.disable_progress_bar()
    engine = Engine.load(model, dtype=getattr(torch, dtype.value))
    for event in engine.generate(data, prompt, max_new_tokens, max_visual_tokens):
        if not isinstance(event, GeneratedToken):
            typer.echo(json.dumps(_summary(event)) if as_json else "")
        elif not as_json:
            typer.echo(event.text, nl=False)


def _summary(finish: "Finish") -> dict[str, object]:
    return asdict(finish) | {"reason": finish.reason.value}


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: expected a readable image file, got: {error.strerror}") from error
