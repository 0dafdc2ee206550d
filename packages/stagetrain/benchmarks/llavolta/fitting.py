"""One training run, as a user of the package makes it."""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llavolta.recipe import Recipe
from transformers import TrainerCallback, TrainingArguments

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
    until_loss: float | None = None,
) -> tuple[TrainResult, dict[str, float]]:
    """Trains in place.

    Args:
        model: What trains.
        samples: On what.
        collator: Makes the batches.
        schedule: Stages.
        recipe: Learning rate and its fall.
        seed: Of the order.
        num_steps: Optimizer steps.
        batch: Samples of each.
        until_loss: Ends early, at a constant learning rate: when the mean loss of 50 steps is below this.

    Returns:
        What `train` gives; and steps, CPU and wall seconds of training and the mean loss of the last twentieth.
    """
    curve = LearningRateCurve(
        kind="warmup_stable_decay" if until_loss is None else "constant",
        warmup_steps=min(_WARMUP_STEPS, num_steps // 8),
        decay_fraction=recipe.decay_fraction,
    )
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(recipe, seed, num_steps, batch, folder)
        callbacks = [] if until_loss is None else [_Stop(until_loss)]
        result = train(model, samples, collator, schedule, arguments, curve=curve, callbacks=callbacks)
    cpu_s, wall_s = time.process_time() - begin_cpu, time.perf_counter() - begin
    tail = result.losses[-max(1, result.num_steps // 20) :]
    return result, {"steps": result.num_steps, "cpu_s": cpu_s, "wall_s": wall_s, "loss": sum(tail) / len(tail)}


class _Stop(TrainerCallback):
    """Ends a run at a loss."""

    def __init__(self, loss: float) -> None:
        self._loss = loss

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Looks at the mean loss since the last log."""
        if (logs or {}).get("loss", self._loss) < self._loss:
            control.should_training_stop = True


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
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
