"""One training run, as a user of the package makes it."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llavolta.recipe import Recipe
from transformers import TrainingArguments

from stagetrain import ConversationCollator, LearningRateCurve, Sample, Schedule, train

WARMUP_STEPS = 50


def fit(
    model: Any,
    samples: Sequence[Sample],
    collator: ConversationCollator,
    schedule: Schedule,
    config: tuple[TrainingArguments, LearningRateCurve],
) -> dict[str, Any]:
    """Trains in place; steps, CPU and wall seconds of training, and the mean loss of the last twentieth."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    args, curve = config
    result = train(model, samples, collator, schedule, args, curve=curve)
    cpu_s, wall_s = time.process_time() - begin_cpu, time.perf_counter() - begin
    tail = result.losses[-max(1, len(result.losses) // 20) :]
    return {"steps": result.num_steps, "cpu_s": cpu_s, "wall_s": wall_s, "loss": sum(tail) / len(tail)}


def config_of(recipe: Recipe, seed: int, num_steps: int, batch: int) -> tuple[TrainingArguments, LearningRateCurve]:
    """Settings of a run."""
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=num_steps,
        per_device_train_batch_size=batch,
        learning_rate=recipe.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.01,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    curve = LearningRateCurve(
        kind="warmup_stable_decay",
        warmup_steps=min(WARMUP_STEPS, num_steps // 8),
        decay_fraction=recipe.decay_fraction,
    )
    return args, curve
