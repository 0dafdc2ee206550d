"""One training run, as a user of the package makes it."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llavolta.recipe import Recipe
from transformers import TrainingArguments

from stagetrain import ConversationCollator, LearningRateCurve, Sample, Schedule, TrainResult, train

_WARMUP_STEPS = 50


def fit(
    model: Any,
    samples: Sequence[Sample],
    collator: ConversationCollator,
    schedule: Schedule,
    recipe: Recipe,
    *,
    seed: int,
    num_steps: int,
    batch: int,
    decays: bool = True,
) -> tuple[TrainResult, dict[str, float]]:
    """Trains in place.

    Returns:
        What `train` gives; and steps, CPU and wall seconds of training and the mean loss of the last twentieth.
    """
    curve = LearningRateCurve(
        kind="warmup_stable_decay" if decays else "constant",
        warmup_steps=min(_WARMUP_STEPS, num_steps // 8),
        decay_fraction=recipe.decay_fraction,
    )
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            model, samples, collator, schedule, _arguments(recipe, seed, num_steps, batch, folder), curve=curve
        )
    cpu_s, wall_s = time.process_time() - begin_cpu, time.perf_counter() - begin
    tail = result.losses[-max(1, num_steps // 20) :]
    return result, {"steps": result.num_steps, "cpu_s": cpu_s, "wall_s": wall_s, "loss": sum(tail) / len(tail)}


def _arguments(recipe: Recipe, seed: int, num_steps: int, batch: int, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=num_steps,
        per_device_train_batch_size=batch,
        learning_rate=recipe.learning_rate,
        adam_beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
