"""Runs of one seed."""

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llavolta.arms import EQUAL_TIME, MAIN, Arm, label
from llavolta.cells import Cells, Row
from llavolta.evaluation import accuracy
from llavolta.fitting import fit
from llavolta.questions import Questions, as_clips
from llavolta.recipe import Recipe
from llavolta.start import MEMORY_BYTES, make_start
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from stagetrain import ConversationCollator, ImageGroups, Sample, attach
from stagetrain.loop.feature_cache import cache_vision_features

Splits = tuple[ImageGroups, list[Sample]]

NUM_CLIPS = (1500, 400)
"""Images of each split that clips are made of."""

NUM_TESTED = 500
"""Images whose questions are asked: about 4,800 of easy-VQA's."""


class Experiment:
    """Trains and tests the arms of one seed, all from the same model.

    Args:
        cells: Where results go.
        questions: Both splits.
        recipe: Numbers of the runs.
        seed: Of the starting point, of the order of data, of everything.
        folder: Where starting points and clips are kept.
        model: Directory to start from; None: the seed's own, made here where `folder` lacks it.
    """

    def __init__(
        self, cells: Cells, questions: Questions, recipe: Recipe, seed: int, folder: Path, model: Path | None
    ) -> None:
        self._cells = cells
        self._questions = questions
        self._recipe = recipe
        self._seed = seed
        self._folder = folder
        self._given = model

    def measure(self, arm: Arm) -> None:
        """Trains an arm and tests it, where the file lacks the cell."""
        self._cells.measure("run", lambda: self._run(arm), arm=arm.name, seed=self._seed)

    def _run(self, arm: Arm) -> Row:
        train, test = self._clips if arm.on_clips else self._images
        model = self._fresh_model()
        result, row = fit(
            model,
            train,
            self._collator,
            arm.schedule,
            self._recipe,
            seed=self._seed,
            num_steps=self._num_steps(arm),
            batch=self._recipe.clips if arm.on_clips else self._recipe.images,
        )
        # A model that was trained to stay compressed has what it needs for that.
        attachment = result.attachment or attach(model)
        learned = [] if attachment.module is None else attachment.module.parameters()
        row["compressor_parameters"] = sum(parameter.numel() for parameter in learned)
        tests = {}
        for setting in arm.tests:
            if setting is None:
                attachment.clear()
            elif setting != attachment.setting:
                attachment.set(setting)
            tests[label(setting)] = accuracy(model, self._collator, test)
        attachment.detach()
        return {**row, "tests": tests}

    def _num_steps(self, arm: Arm) -> int:
        """The recipe's; for plain at equal time more or fewer, as the measured CPU times of seed's runs say."""
        if arm.name != EQUAL_TIME:
            return self._recipe.num_steps
        rows = [next(self._cells.of("run", arm=name, seed=self._seed))[1] for name in (MAIN[1], MAIN[0])]
        staged_s, plain_s = (row["cpu_s"] for row in rows)
        return round(self._recipe.num_steps * staged_s / plain_s)

    def _fresh_model(self) -> Any:
        """The model as all runs find it; one object, so that its tower's features outlive a run."""
        self._model.load_state_dict(self._weights, strict=False)
        return self._model

    @cached_property
    def _directory(self) -> Path:
        if self._given is not None:
            return self._given
        directory = self._folder / f"start-{self._seed}"
        if not directory.exists():
            begin = partial(make_start, directory, self._questions, self._recipe, self._seed)
            self._cells.record("start", begin, seed=self._seed)
        return directory

    @cached_property
    def _model(self) -> Any:
        model = AutoModelForImageTextToText.from_pretrained(self._directory)
        model.model.vision_tower.requires_grad_(False)
        cache_vision_features(model, MEMORY_BYTES)
        return model

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        weights = self._model.state_dict().items()
        return {name: value.clone() for name, value in weights if "vision_tower" not in name}

    @cached_property
    def _collator(self) -> ConversationCollator:
        processor = AutoProcessor.from_pretrained(self._directory)
        return ConversationCollator(processor, self._recipe.questions, seed=self._seed)

    @cached_property
    def _images(self) -> Splits:
        return self._encoded(self._questions)

    @cached_property
    def _clips(self) -> Splits:
        return self._encoded(as_clips(self._questions, self._folder / "clips", NUM_CLIPS))

    def _encoded(self, questions: Questions) -> Splits:
        """Both splits, their images encoded, since that is no run's training time."""
        train, test = questions.groups
        tested = [test[index] for index in range(min(NUM_TESTED, len(test)))]
        for samples in (train, tested):
            accuracy(self._model, self._collator, samples)
        return train, tested
