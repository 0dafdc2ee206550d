"""Runs of one seed."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlsi.arms import EQUAL_TIME, Arm
from vlsi.cells import Cells, Row
from vlsi.models import fresh_student, load_teacher
from vlsi.questions import ImageQuestions, PackedBatches, accuracy, encode
from vlsi.recipe import Recipe

from verbdistill import DistillConfig, DistillResult, LocalTeacher, Teacher, distill, finetune, train_verbalizers
from verbdistill.seeing.scoring import evaluate, questions_of
from vlmpress.data import Record

NUM_TESTED = 500
"""Images whose questions are asked: about 4,800 of easy-VQA's."""

NUM_SEARCHED = 500
"""Questions answered greedily and with beams."""

BEAMS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """Records to train on and to test on."""

    train: list[Record]
    test: list[Record]


class Experiment:
    """Trains and tests the arms of one seed, all with the same teacher and students that begin alike.

    Args:
        cells: Where results go.
        splits: Records.
        recipe: Numbers of the runs.
        seed: Of students, verbalizers, data order and matches.
        teacher: Directory of the trained teacher.
    """

    def __init__(self, cells: Cells, splits: Splits, recipe: Recipe, seed: int, teacher: Path) -> None:
        self._cells = cells
        self._splits = splits
        self._recipe = recipe
        self._seed = seed
        self._teacher, self._processor = load_teacher(teacher)
        self._speaking: dict[tuple[str, int], tuple[Teacher, float]] = {}

    def measure(self, arm: Arm) -> None:
        """Trains an arm and tests it, where the file lacks the cell."""
        self._cells.measure("teacher", lambda: accuracy(self._teacher, self._tested), seed=self._seed)
        self._cells.measure("run", lambda: self._run(arm), arm=arm.name, seed=self._seed)

    def _run(self, arm: Arm) -> Row:
        student = fresh_student(self._teacher, arm.num_layers or self._recipe.num_layers, self._seed)
        num_steps = self._num_steps(arm)
        config = self._config(arm, num_steps)
        batches = self._batches
        teacher, shared_s = self._teacher_of(arm, config)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        if config.num_interaction_steps:
            result = distill(teacher, student, batches, config)
        else:
            result = finetune(student, batches, config)
        row = {
            "steps": config.num_interaction_steps + config.num_sft_steps,
            "cpu_s": time.process_time() - begin_cpu + shared_s,
            "wall_s": time.perf_counter() - begin,
            "tests": accuracy(student, self._tested),
        }
        if isinstance(result, DistillResult) and result.matches:
            row["matches"] = {"first": result.first_counts, "last": result.last_counts}
        if arm.beams:
            row["search"] = {
                f"beams {beams}": evaluate(student, self._processor, self._searched, num_beams=beams)
                .scores["all"]
                .accuracy
                for beams in (1, BEAMS)
            }
        return row

    def _num_steps(self, arm: Arm) -> int:
        """The recipe's; for a rival at equal time more or fewer, as the seed's measured CPU times say."""
        if not arm.name.endswith(EQUAL_TIME):
            return self._recipe.num_steps
        vlsi_s, own_s = (self._cpu_s(name) for name in ("vlsi", arm.name.removesuffix(EQUAL_TIME)))
        return round(self._recipe.num_steps * vlsi_s / own_s)

    def _cpu_s(self, name: str) -> float:
        ((_, row),) = self._cells.of("run", arm=name, seed=self._seed)
        return float(row["cpu_s"])

    def _config(self, arm: Arm, num_steps: int) -> DistillConfig:
        recipe = self._recipe
        alone = arm.interaction == 0
        config = DistillConfig(
            num_verbalization_steps=recipe.verbalization_steps if arm.verbalizes else 0,
            num_interaction_steps=round(arm.interaction * num_steps),
            num_sft_steps=round(arm.sft * num_steps),
            verbalization_lr=recipe.verbalization_learning_rate,
            interaction_lr=recipe.learning_rate,
            sft_lr=recipe.learning_rate if alone else recipe.sft_learning_rate,
            min_lr_ratio=recipe.min_lr_ratio,
            lora_rank=None,  # a student from scratch has nothing for an adapter to adapt
            seed=self._seed,
        )
        return replace(config, **arm.config)

    def _teacher_of(self, arm: Arm, config: DistillConfig) -> tuple[Any, float]:
        """Who is asked, and the CPU seconds of the verbalizers that arms of the seed share."""
        if config.intermediate not in ("kl", "l2") or not arm.verbalizes:
            return self._teacher, 0.0
        body = (config.verbalizer, config.verbalizer_depth)
        if body not in self._speaking:
            begin = time.process_time()
            verbalizers, _ = train_verbalizers(self._teacher, self._batches, config, role="teacher")
            self._speaking[body] = (LocalTeacher(self._teacher, verbalizers), time.process_time() - begin)
        return self._speaking[body]

    @cached_property
    def _batches(self) -> PackedBatches:
        images = encode(self._splits.train, self._processor, self._recipe.num_images)
        return PackedBatches(images, self._recipe.images, self._recipe.questions, self._seed)

    @cached_property
    def _tested(self) -> list[ImageQuestions]:
        return encode(self._splits.test, self._processor, NUM_TESTED)

    @cached_property
    def _searched(self) -> list[Record]:
        return questions_of(self._splits.test, NUM_SEARCHED)
