"""Runs of one data set and seed."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from auroraedge.arms import Arm
from auroraedge.cells import Cells, Row
from auroraedge.fitting import Encoded, Stage, Subject, accuracy, fit
from auroraedge.questions import Questions
from auroraedge.recipe import Recipe
from auroraedge.start import encoded, start_report
from auroraedge.switching import switched
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from edgevlm import build_from_llava

_CONNECTORS = ("model.multi_modal_projector", "model.compressor", "model.fusion", "model.reconstruction")
_ALONE_IMAGES = 32


class Experiment:
    """Trains and tests arms, all from the same Llava.

    Args:
        cells: Where results go.
        questions: The data set.
        recipe: Numbers of the runs.
        seed: Of the Llava, of fresh connectors, of the order of data.
        work: Folder where Llavas are kept.
    """

    def __init__(self, cells: Cells, questions: Questions, recipe: Recipe, seed: int, work: Path) -> None:
        self._cells, self._questions, self._recipe, self._seed = cells, questions, recipe, seed
        # Of another recipe it would be another start.
        digest = hashlib.sha256(json.dumps(recipe.as_json(), sort_keys=True).encode()).hexdigest()[:12]
        self._directory = work / f"{questions.name}-{seed}-{digest}"

    def measure(self, arm: Arm) -> None:
        """Trains an arm and tests it, where the file lacks the cell."""
        self._cells.measure("run", lambda: self._run(arm), **arm.fields(), seed=self._seed)

    def _run(self, arm: Arm) -> Row:
        recipe = self._recipe
        model, _ = build_from_llava(
            self._llava, self._processor, num_compressed_tokens=arm.tokens, compressor=arm.compressor,
            fusion=arm.fusion, fusion_order=arm.order, num_fusion_layers=arm.layers, seed=self._seed,
            reconstruction="features" if arm.aid == "alone" else arm.aid,
            reconstruction_loss_weight=1.0 if arm.aid == "alone" else recipe.auxiliary_weight,
        )  # fmt: skip
        subject = Subject(model, self._processor.tokenizer.get_vocab())
        row: Row = {"before": accuracy(subject, self._test, recipe.off_images)}
        if arm.aid == "alone":
            row["alone"] = self._pretrain(subject)
        all_parts = (*_CONNECTORS, "model.language_model")
        stages = (
            Stage(num_steps=recipe.connector_steps, rate=recipe.connector_rate, trainable=_CONNECTORS),
            Stage(
                num_steps=recipe.joint_steps,
                rate=recipe.joint_rate,
                trainable=all_parts if arm.llm == "trained" else _CONNECTORS,
            ),
        )
        row |= fit(subject, self._train, stages, images=recipe.images, questions=recipe.questions, seed=self._seed)
        row["accuracy"] = accuracy(subject, self._test)
        if arm.fusion != "none":
            row["off"] = switched(subject, self._test, recipe.off_images)
        return row

    def _pretrain(self, subject: Subject) -> Row:
        """The compressor on its own reconstruction; then the head is dropped."""
        model, recipe = subject.model, self._recipe
        model.config.text_loss_weight = 0.0
        stage = Stage(
            num_steps=recipe.alone_steps,
            rate=recipe.connector_rate,
            trainable=("model.compressor", "model.reconstruction"),
        )
        row = fit(subject, self._train, (stage,), images=_ALONE_IMAGES, questions=1, seed=self._seed)
        model.config.reconstruction, model.config.text_loss_weight = "none", 1.0
        model.model.reconstruction = None
        return row | {"accuracy": accuracy(subject, self._test, recipe.off_images)}

    @cached_property
    def _llava(self) -> Any:
        report = start_report(self._directory, self._questions, self._recipe, self._seed)
        self._cells.measure("start", lambda: report, data=self._questions.name, seed=self._seed)
        return LlavaForConditionalGeneration.from_pretrained(self._directory)

    @cached_property
    def _processor(self) -> Any:
        assert self._llava is not None
        return LlavaProcessor.from_pretrained(self._directory)

    @cached_property
    def _splits(self) -> tuple[Encoded, Encoded]:
        return encoded(self._llava, self._questions)

    @property
    def _train(self) -> Encoded:
        return self._splits[0]

    @property
    def _test(self) -> Encoded:
        return self._splits[1]
