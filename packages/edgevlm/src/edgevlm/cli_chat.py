"""`edgevlm chat`."""

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli_options import Dtype
from edgevlm.errors import EdgeVlmError, ImageError, PromptTooLongError, RequestError

if TYPE_CHECKING:
    from edgevlm.serving.conversation import Conversation
    from edgevlm.serving.events import Finish

_PROMPT = "> "
_COMMANDS = "/image PATH shows one more image, /reset begins anew, /exit ends"


def chat(
    model: Annotated[Path, typer.Argument(help="Directory of any image-text-to-text model, or a pack.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="PNG or JPEG files; without any, text alone.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One question; without it, a conversation on stdin.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    max_visual_tokens: Annotated[
        int | None, typer.Option(min=1, help="Limit of visual tokens; a model with a reduction policy keeps to it.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token, more draws more freely.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draws among the likeliest tokens that sum to this.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of an unquantized model's weights.")] = Dtype.FLOAT32,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an answer, no stream.")] = False,
) -> None:
    """Answers questions and prints each answer as it comes.

    Without --prompt it goes on until the end of standard input and remembers what was said:
    /image PATH shows one more image, /reset begins anew, /exit ends.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    from edgevlm.serving.conversation import Conversation
    from edgevlm.serving.engine import Engine
    from edgevlm.serving.requests import Sampling

    data = [_read_image(path) for path in images or ()]
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    transformers_logging.disable_progress_bar()
    engine = Engine.load(model, dtype=getattr(torch, dtype.value))
    conversation = Conversation(
        engine, data, max_new_tokens=max_new_tokens, max_visual_tokens=max_visual_tokens, sampling=sampling
    )
    if prompt is not None:
        _answer(conversation, prompt, as_json=as_json)
        return
    for line in _lines():
        try:
            if not _obey(conversation, line, as_json=as_json):
                return
        except EdgeVlmError as error:
            hint = "; /reset begins anew" if isinstance(error, PromptTooLongError) else ""
            typer.echo(f"error: {' '.join(str(error).split())}{hint}", err=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            typer.echo("")


def _obey(conversation: "Conversation", line: str, *, as_json: bool) -> bool:
    """Does what a line of the conversation asks; False to end."""
    if not line.startswith("/"):
        if line:
            _answer(conversation, line, as_json=as_json)
        return True
    command, _, argument = line.partition(" ")
    if command == "/image":
        conversation.add_image(_read_image(Path(argument.strip()).expanduser()))
    elif command == "/reset":
        conversation.reset()
    elif command == "/help":
        typer.echo(_COMMANDS, err=True)
    elif command != "/exit":
        raise RequestError(f"{command}: expected a question or a command, of which {_COMMANDS}")
    return command != "/exit"


def _answer(conversation: "Conversation", prompt: str, *, as_json: bool) -> None:
    from edgevlm.serving.events import GeneratedToken

    for event in conversation.ask(prompt):
        if not isinstance(event, GeneratedToken):
            typer.echo(json.dumps(_summary(event)) if as_json else "")
        elif not as_json:
            typer.echo(event.text, nl=False)


def _lines() -> Iterator[str]:
    """Lines of standard input without spaces around them; on a terminal each after a prompt."""
    if not sys.stdin.isatty():
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        # Gives `input` its line editing.
        importlib.import_module("readline")
    typer.echo(_COMMANDS, err=True)
    while True:
        try:
            yield input(_PROMPT).strip()
        except EOFError:
            typer.echo("")
            return


def _summary(finish: "Finish") -> dict[str, object]:
    return asdict(finish) | {"reason": finish.reason.value}


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{path}: expected a readable image file, got: {reason}") from error
