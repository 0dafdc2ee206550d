"""Trained models to quantize, with what they are calibrated, searched and tested on."""

import copy
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from quantpack import QuantizedTensor
from quantpack.accuracy import answer_accuracy
from quantpack.calibration.dataset import Question, as_samples, batches, read_questions
from quantpack.search.sizing import CodeSize, size_of
from quantpack.source import WEIGHTS

NUM_CALIBRATION, NUM_SEARCH, NUM_TEST = 64, 500, 1000
_BATCH = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model and its data.

    Attributes:
        name: The first digits of its weights' SHA-256.
        directory: Holds it in bfloat16.
        model: In bfloat16; copied, never changed.
        calibration: From split train.
        search: What a search looks at, from split train.
        test: What is reported, from split test.
    """

    name: str
    directory: Path
    model: nn.Module
    calibration: Sequence[dict[str, Any]]
    search: Sequence[Question]
    test: Sequence[Question]

    def fresh(self) -> nn.Module:
        """A copy to quantize."""
        return copy.deepcopy(self.model)

    def row(self, model: nn.Module, tensors: Mapping[str, QuantizedTensor]) -> dict[str, Any]:
        """What the codes take, and the accuracy of the model on the test questions."""
        size = sum((size_of(tensor) for tensor in tensors.values()), start=CodeSize())
        return {
            "weights": size.num_weights,
            "packed": size.code_bytes_packed,
            "compressed": size.code_bytes_compressed,
            "side": size.side_bytes,
            "accuracy": answer_accuracy(model, self.test),
        }

    def search_accuracy(self, model: nn.Module) -> float:
        """On the questions that a search may look at."""
        return answer_accuracy(model, self.search)


def open_subject(directory: Path, data: Path, images: Path | None, folder: Path) -> Subject:
    """Copies a model directory in bfloat16 below `folder` and reads its data."""
    name = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()[:8]
    copied = folder / name
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.bfloat16)
    model.save_pretrained(copied)
    for path in directory.iterdir():
        if path.is_file() and not (copied / path.name).exists() and not path.name.startswith("manifest."):
            shutil.copyfile(path, copied / path.name)

    def questions(split: str, number: int) -> list[Question]:
        return read_questions(copied, data, images, split=split, num_questions=number)

    return Subject(
        name=name,
        directory=copied,
        model=model.eval(),
        calibration=as_samples(batches(questions("train", NUM_CALIBRATION), 16)),
        search=batches(questions("train", NUM_SEARCH), _BATCH),
        test=batches(questions("test", NUM_TEST), _BATCH),
    )
