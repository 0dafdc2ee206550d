"""The command `stagetrain bench`: what a schedule saves on this machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import vlmpress.cli
from stagetrain.cli_model import load_model


def bench(
    scheme: Annotated[str, typer.Option(help="A scheme of Table 1.")] = "three_stage_deeper",
    model: Annotated[Path | None, typer.Option(help="Model directory; default: a Llava of the shape below.")] = None,
    layers: Annotated[int, typer.Option(min=2, help="Decoder layers.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Visual tokens of an image, a square number.")] = 576,
    text: Annotated[int, typer.Option(min=2, help="Text tokens of a row.")] = 64,
    hidden: Annotated[int, typer.Option(min=16, help="Width of the decoder, a multiple of 16.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run.")] = 9,
    rounds: Annotated[int, typer.Option(min=1, help="Runs.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Times a staged run against a plain one of as many steps, step by step in turn; features are cached."""
    import torch

    from stagetrain.schedules.schemes import named_schedule
    from stagetrain.timing.wall_clock import summarize, time_schedule

    torch.set_num_threads(threads)
    if model is None:
        from stagetrain.timing.synthetic import SyntheticShape, synthetic_batch, synthetic_llava

        shape = SyntheticShape(
            num_layers=layers, num_visual_tokens=tokens, num_text_tokens=text, batch=batch, hidden_size=hidden
        )
        loaded, tensors = synthetic_llava(shape), synthetic_batch(shape)
    else:
        loaded, tensors = _from_directory(model, batch, text)
    schedule = named_schedule(scheme, loaded.config.get_text_config().num_hidden_layers)
    with vlmpress.cli.progress(f"bench {scheme}") as bar:
        timed = time_schedule(loaded, tensors, schedule, steps, rounds, bar.update)
    ids = tensors["input_ids"]
    visual = int((ids == loaded.config.image_token_id).sum())
    report = {
        "scheme": scheme,
        "layers": loaded.config.get_text_config().num_hidden_layers,
        "batch": len(ids),
        "visual_tokens": visual // len(ids),
        "text_tokens": (ids.numel() - visual) // len(ids),
        "threads": threads,
        **summarize(timed, schedule, ids.numel()),
    }
    typer.echo(json.dumps(report) if as_json else _table(report))


def _from_directory(directory: Path, batch: int, num_text: int) -> tuple[Any, Any]:
    """A model and a batch of noise images with a text of about `num_text` tokens, made by its own processor."""
    import torch
    from PIL import Image

    from stagetrain.loop.feature_cache import vision_tower

    model, processor = load_model(directory)
    vision_tower(model).requires_grad_(False)
    side = getattr(model.config.vision_config, "image_size", 448)
    image = Image.effect_noise((side, side), 80).convert("RGB")
    content = [{"type": "image"}, {"type": "text", "text": " ".join(["a"] * num_text)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    tensors = dict(processor(images=[image] * batch, text=[text] * batch, return_tensors="pt"))
    ids = tensors["input_ids"]
    tensors["labels"] = torch.where(ids == model.config.image_token_id, -100, ids)
    return model, tensors


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['layers']} layers, {report['visual_tokens']} visual and {report['text_tokens']} text tokens, batch"
        f" {report['batch']}, {report['threads']} threads; best and median of {report['rounds']} runs of"
        f" {report['steps_per_run']} steps",
        f"{'one step':<44}{'ms':>9}{'median':>9}{'CPU ms':>9}{'median':>9}{'tokens/s':>10}",
    ]
    for name, value in report["step"].items():
        columns = (1000 * value[which][clock] for clock in ("wall_s", "cpu_s") for which in ("min", "median"))
        lines.append(f"{name:<44}{''.join(f'{each:>9.1f}' for each in columns)}{value['tokens_per_s']:>10.0f}")
    for name, value in report["run"].items():
        columns = (1000 * value[which][clock] for clock in ("wall_s", "cpu_s") for which in ("min", "median"))
        lines.append(f"{'run, ' + name:<44}{''.join(f'{each:>9.0f}' for each in columns)}")
    saving = report["saving_percent"]
    lines.append(
        f"saved: {saving['wall_s']['median']:.1f}% of the time (best runs {saving['wall_s']['of_min']:.1f}%),"
        f" {saving['cpu_s']['median']:.1f}% of the CPU time"
    )
    return "\n".join(lines)
