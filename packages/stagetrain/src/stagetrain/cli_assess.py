"""`stagetrain assess`: how redundant a trained model's visual tokens are."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import vlmpress.cli
from stagetrain.cli_model import load_model
from stagetrain.errors import ConfigError
from stagetrain.figures import check_format, new_figure, save_figure
from vlmpress.data import load_records

_LAYER_SHARES = (0.0625, 0.25, 0.5, 0.75)
_STRIDES = (2, 4, 8)


def assess(
    model: Annotated[Path, typer.Option(help="Directory of a trained model and its processor (save_pretrained).")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON or JSONL, or JSONL {image, question, answer}.")],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    layers: Annotated[str | None, typer.Option(help="Compress before these layers, as 1,2; default: four.")] = None,
    strides: Annotated[
        str | None, typer.Option(help="Visual tokens for one that is left, as 2,4; default: 2,4,8.")
    ] = None,
    compressor: Annotated[str, typer.Option(help="Names of compressors, as average,k_means.")] = "average",
    limit: Annotated[int | None, typer.Option(min=1, help="Most questions, drawn always in the same way.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions asked at once.")] = 32,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: as the data's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the paper's Figure 1, .png or .svg.")] = None,
) -> None:
    """Answers questions with visual tokens compressed inside a trained model: accuracy against compression.

    Nothing is trained. Also measured: how much the token that brings forth the answer attends to visual tokens,
    to the text before them and to the rest, layer by layer. Records of the training split are left out.
    """
    if plot is not None:
        check_format(plot)
        # A missing extra must not show itself after all questions have been asked.
        new_figure(1, 1)
    # The imports take seconds; --help needs none of them.
    import torch

    from stagetrain import assessing

    wanted = None if strides is None else _numbers("--strides", strides)
    places = None if layers is None else _numbers("--layers", layers)
    names = [name.strip() for name in compressor.split(",")]
    questions = assessing.questions_of(load_records(data, images), limit)
    loaded, processor = load_model(model)
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = _settings(model, loaded, names, places, wanted)
    with vlmpress.cli.progress("assess") as bar:
        assessment = assessing.assess(
            loaded,
            processor,
            questions,
            settings,
            batch_size=batch,
            max_new_tokens=max_new_tokens,
            on_progress=bar.update,
        )
    if plot is not None:
        from stagetrain.assessing.plot import assessment_figure

        save_figure(assessment_figure(assessment), plot)
    if as_json:
        origin = {"model": str(model), "data": str(data)}
        typer.echo(json.dumps({**origin, **assessing.assessment_to_json(assessment)}))
    else:
        typer.echo(assessing.assessment_table(assessment))


def _settings(
    directory: Path, model: Any, names: list[str], layers: list[int] | None, strides: list[int] | None
) -> tuple[Any, ...]:
    """Every setting to ask under: what the model was trained to keep, if anything, belongs to them."""
    from stagetrain.assessing import sweep_settings
    from stagetrain.attaching.saved_setting import saved_setting
    from stagetrain.compressors import compressor_named
    from stagetrain.families import family_of

    most = family_of(model).most_tokens(model)
    layers = layers or _default_layers(model.config.get_text_config().num_hidden_layers)
    settings = sweep_settings(layers, strides or [s for s in _STRIDES if most is None or s <= most], names)
    own = saved_setting(directory)
    if own is None:
        return settings
    if compressor_named(own.compressor).is_learned:
        raise ConfigError(
            f"{directory}: expected a model that is whole without {own.compressor}, got one trained with it"
        )
    return tuple(dict.fromkeys((own, *settings)))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"{option}: expected whole numbers with commas between them, got {text!r}") from error


def _default_layers(num_layers: int) -> list[int]:
    """The paper's 2 of 32 at first, then every quarter."""
    found = {min(max(1, round(share * num_layers)), num_layers - 1) for share in _LAYER_SHARES}
    return sorted(found)
