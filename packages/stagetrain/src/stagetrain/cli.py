"""The command `stagetrain`."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments
from transformers.utils.logging import disable_progress_bar

import vlmpress.cli
from stagetrain import training
from stagetrain.cli_assess import assess
from stagetrain.cli_schemes import schemes
from stagetrain.conversations import ConversationCollator
from stagetrain.errors import StageTrainError
from stagetrain.groups import ImageGroups
from stagetrain.schedule import Schedule
from stagetrain.schemes import edge_schedule, named_schedule
from vlmpress.artifact import ArtifactError, import_model_code
from vlmpress.cli import UserError
from vlmpress.data import DataError, load_records

app = typer.Typer(help="Trains vision-language models with visual tokens pooled stage by stage.", no_args_is_help=True)
app.command()(assess)
app.command()(schemes)


@app.command()
def train(
    model: Annotated[Path, typer.Option(help="Directory of a model and its processor (save_pretrained).")],
    data: Annotated[Path, typer.Option(help="LLaVA JSON or JSONL, or JSONL {image, question, answer}.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of all stages.")],
    out: Annotated[Path, typer.Option(help="Directory to write; must not exist.")],
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    scheme: Annotated[str, typer.Option(help="plain, a scheme of Table 1, or edge.")] = "plain",
    connectors: Annotated[list[str] | None, typer.Option(help="Scheme edge: names trained first begin so.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-5,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of warmup.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    questions: Annotated[int, typer.Option(min=1, help="Questions of an image in one epoch.")] = 6,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    checkpoints: Annotated[Path | None, typer.Option(help="Folder to save to and go on from.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
) -> None:
    """Trains a model on conversations about images; records of the test split are left out."""
    if out.exists():
        raise UserError(f"{out}: expected a path that does not exist yet")
    records = [record for record in load_records(data, images) if record.split != "test"]
    if not records:
        raise UserError(f"{data}: expected records to train on, got only the test split")
    args = TrainingArguments(
        output_dir=str(checkpoints or out.parent),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup,
        seed=seed,
        save_strategy="no" if checkpoints is None else "steps",
        save_steps=save_every,
        report_to=[],
        disable_tqdm=True,
    )
    loaded, processor = _load(model)
    schedule = _schedule(scheme, connectors or [], loaded.config.get_text_config().num_hidden_layers)
    collator = ConversationCollator(processor, questions, seed=seed)
    with vlmpress.cli.progress(f"train {schedule.name}") as bar:
        result = training.train(
            loaded,
            ImageGroups(records),
            collator,
            schedule,
            args,
            on_progress=bar.update,
        )
    _save(loaded, processor, out)
    tail = result.losses[-20:]
    print(json.dumps({"out": str(out), "steps": result.num_steps, "loss": sum(tail) / len(tail)}))


def _schedule(name: str, connectors: list[str], num_layers: int) -> Schedule:
    return edge_schedule(connectors) if name == "edge" else named_schedule(name, num_layers)


def _load(directory: Path) -> tuple[Any, Any]:

    # Its bars for reading and writing a file would stand between ours and the one line of an error.
    disable_progress_bar()
    try:
        import_model_code(directory)
        model = AutoModelForImageTextToText.from_pretrained(directory)
        return model, AutoProcessor.from_pretrained(directory)
    except (ArtifactError, OSError, ValueError) as error:
        raise UserError(f"{directory}: expected a model directory with a processor, got {error}") from error


def _save(model: Any, processor: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
        draft.chmod(0o755)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def main() -> int:
    """Runs the command and gives its exit code."""
    return vlmpress.cli.run(app, (StageTrainError, DataError))
