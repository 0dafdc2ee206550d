"""Where runs start from: a Llava of 64 visual tokens, trained here once for each data set and seed."""

import json
import shutil
from pathlib import Path
from typing import Any

from auroraedge.fitting import Encoded, Stage, Subject, accuracy, fit
from auroraedge.questions import Questions, as_pixel_values
from auroraedge.recipe import Recipe
from auroraedge.tiny import build_model, build_processor
from auroraedge.tower import encode, train_tower
from auroraedge.wording import learn_words

from edgevlm import build_from_llava

REPORT = "report.json"


def start_report(directory: Path, questions: Questions, recipe: Recipe, seed: int) -> dict[str, Any]:
    """What came of a start's training; trained and written now where it is not there yet."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        _make_start(directory, questions, recipe, seed)
    report: dict[str, Any] = json.loads((directory / REPORT).read_text(encoding="utf-8"))
    return report


def _make_start(directory: Path, questions: Questions, recipe: Recipe, seed: int) -> None:
    """Trains and writes it, there whole or not at all."""
    processor = build_processor(questions.vocabulary)
    ids = processor.tokenizer.get_vocab()
    model = build_model(processor, recipe.num_layers, seed)
    report: dict[str, Any] = {}
    # Without compressor and fusion an edge model is the very same model; its weights have the same names.
    edge, _ = build_from_llava(model, processor, num_compressed_tokens=64, compressor="none", fusion="none")
    report["words"] = learn_words(edge, ids, questions, recipe, seed)
    # Its words have moved on, and the tower is taught in them.
    model.load_state_dict(edge.state_dict())
    report["tower_right"] = train_tower(model, ids, questions, recipe, seed)
    edge.load_state_dict(model.state_dict())
    train, test = encoded(model, questions)
    subject = Subject(edge, ids)
    trainable = ("model.multi_modal_projector", "model.language_model")
    stages = (
        Stage(num_steps=recipe.student_steps, rate=recipe.student_rate, trainable=trainable, until=recipe.student_loss),
        Stage(num_steps=recipe.student_last_steps, rate=recipe.student_rate, trainable=trainable, shape="falling"),
    )
    report |= fit(subject, train, stages, images=recipe.images, questions=recipe.questions, seed=1000 + seed)
    report["accuracy"] = accuracy(subject, test)
    model.load_state_dict(edge.state_dict())
    draft = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    (draft / REPORT).write_text(json.dumps(report), encoding="utf-8")
    processor.save_pretrained(draft)
    draft.rename(directory)


def encoded(model: Any, questions: Questions) -> tuple[Encoded, Encoded]:
    """Both splits, their images encoded."""
    splits = (questions.train, questions.test)
    train, test = (Encoded.of(split, encode(model, as_pixel_values(split.pixels))) for split in splits)
    return train, test
