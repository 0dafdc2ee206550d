"""`verbdistill verbalize`, `evaluate` and `plot`: what layers say, how well a model answers, what a run did."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vlmpress.cli
from vlmpress.data import QuestionPrior, load_records

if TYPE_CHECKING:
    from verbdistill.seeing.scoring import Evaluation
    from verbdistill.seeing.speaking import LayerSpeech, Speeches

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ModelArgument = Annotated[Path, typer.Argument(help="Directory of a model and its processor.")]


def mount(app: typer.Typer) -> None:
    """Adds these commands."""
    app.command()(verbalize)
    app.command()(evaluate)
    app.command()(plot)


def verbalize(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    verbalizers: Annotated[Path, typer.Option(help="Verbalizers of the model, or of the one it was trained from.")],
    against: Annotated[Path | None, typer.Option(help="Another model's directory to ask the same.")] = None,
    against_verbalizers: Annotated[
        Path | None, typer.Option(help="Its verbalizers; by default those of the first.")
    ] = None,
    max_words: Annotated[int, typer.Option(help="Most words (tokens) of a layer's text.", min=1)] = 16,
    num_likeliest: Annotated[int, typer.Option(help="Likeliest first words to tell.", min=1)] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Prints what every target layer of a model says (Figure 3): each continues its own text, greedily."""
    asked = [(model, verbalizers)]
    if against is not None:
        asked.append((against, against_verbalizers or verbalizers))
    from verbdistill.data.images import read_image
    from verbdistill.seeing import speaking
    from verbdistill.verbalizers.storing import load_verbalizers

    picture = read_image(image)
    found = []
    for directory, folder in asked:
        loaded, processor = _load(directory)
        bodies = load_verbalizers(folder, loaded).to(loaded.device)
        found.append(
            speaking.verbalize(
                loaded, processor, bodies, picture, question, max_words=max_words, num_likeliest=num_likeliest
            )
        )
    if as_json:
        models = [{"model": str(directory), **asdict(each)} for (directory, _), each in zip(asked, found, strict=True)]
        typer.echo(json.dumps({"image": str(image), "question": question, "models": models}))
        return
    blocks = [f"{directory}\n{_speech_table(each)}" for (directory, _), each in zip(asked, found, strict=True)]
    typer.echo(f"{question}\n\n" + "\n\n".join(blocks))


def evaluate(
    model: ModelArgument,
    data: Annotated[Path, typer.Argument(help="LLaVA JSON or JSONL, or JSONL {image, question, answer}.")],
    beams: Annotated[int, typer.Option(help="Beams of the search; 1: greedy.", min=1)] = 1,
    images: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    train: Annotated[
        Path | None, typer.Option(help="Training records for the prior; default: the data's own training split.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most questions, drawn always in the same way.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Questions asked at once.", min=1)] = 32,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer; default: as the data's.", min=1)] = None,
    as_json: JsonFlag = False,
) -> None:
    """Exact-match accuracy by question type, against what the question alone tells (Table 4b: greedy or beams).

    Asked are all records but those of the training split. The prior answers every question as the training records
    answer the very same question most often: a model that does not beat it has not used the image.
    """
    records = load_records(data, images)
    training = [record for record in records if record.split == "train"] if train is None else load_records(train)
    from verbdistill.seeing import scoring

    questions = scoring.questions_of(records, limit)
    loaded, processor = _load(model)
    with vlmpress.cli.progress("evaluating") as bar:
        evaluation = scoring.evaluate(
            loaded,
            processor,
            questions,
            num_beams=beams,
            prior=QuestionPrior.fit(training) if training else None,
            batch_size=batch,
            max_new_tokens=max_new_tokens,
            on_progress=bar.update,
        )
    if as_json:
        typer.echo(json.dumps({"model": str(model), "data": str(data), **asdict(evaluation)}))
    else:
        typer.echo(_score_table(evaluation))


def plot(
    artifact: Annotated[Path, typer.Argument(help="Directory of a distilled student.")],
    out: Annotated[Path, typer.Option(help="Picture to write, .svg or .png.")],
) -> None:
    """Draws matched layers at the start and end of training (Figure 5) and each target's loss over it (Appendix B)."""
    from verbdistill.seeing.figures import check_format, save_figure
    from verbdistill.seeing.plotting import report_figure
    from verbdistill.seeing.report import read_report

    check_format(out)
    save_figure(report_figure(read_report(artifact)), out)
    typer.echo(str(out))


def _load(directory: Path) -> tuple[Any, Any]:
    """Model and processor, on the accelerator if there is one."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from verbdistill.seeing.loading import load_model

    # Its bars for reading a file would stand between ours and the one line of an error.
    disable_progress_bar()
    model, processor = load_model(directory)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def _speech_table(speeches: "Speeches") -> str:
    rows = [*speeches.layers, speeches.answer]
    width = max(len(_quoted(row.text)) for row in rows)
    lines = [f"{'layer':>6}  {'says':<{width}}  likeliest first words"]
    lines += [f"{_name(row):>6}  {_quoted(row.text):<{width}}  {_first_words(row)}" for row in rows]
    return "\n".join(lines)


def _name(speech: "LayerSpeech") -> str:
    return "model" if speech.layer is None else str(speech.layer)


def _quoted(text: str) -> str:
    """On one line, whatever a layer says."""
    return json.dumps(text, ensure_ascii=False)


def _first_words(speech: "LayerSpeech") -> str:

    return ", ".join(f"{_quoted(each.word)} {each.probability:.3f}" for each in speech.first_words)


def _score_table(evaluation: "Evaluation") -> str:
    how = "greedy" if evaluation.num_beams == 1 else f"{evaluation.num_beams} beams"
    lines = [f"{how:<10}{'questions':>10}{'accuracy':>10}{'prior':>10}"]
    for kind, score in evaluation.scores.items():
        prior = "-" if score.prior is None else f"{score.prior:.4f}"
        lines.append(f"{kind:<10}{score.num_questions:>10}{score.accuracy:>10.4f}{prior:>10}")
    return "\n".join(lines)
