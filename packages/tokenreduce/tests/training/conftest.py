import pytest
import torch
from transformers import Trainer, TrainingArguments

IMAGE = 3


class WatchedTrainer(Trainer):
    """Notes which factors every forward used: (optimizer step, factors) in training, factors in evaluation."""

    def watch(self, handle):
        self.handle, self.trained, self.evaluated = handle, [], []
        return self

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.trained.append((self.state.global_step, tuple(self.handle.last_factors)))
        return loss

    def prediction_step(self, *args, **kwargs):
        result = super().prediction_step(*args, **kwargs)
        self.evaluated.append(tuple(self.handle.last_factors))
        return result


@pytest.fixture
def examples(pixels, prompt):
    """Ten examples of one image each."""
    return [{"input_ids": prompt(5, index), "pixel_values": pixels[index % 5]} for index in range(10)]


@pytest.fixture
def collate():
    """Rows of equal length; one image or several each."""

    def call(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        images = [row["pixel_values"] if row["pixel_values"].ndim == 4 else row["pixel_values"][None] for row in rows]
        return {
            "input_ids": ids,
            "pixel_values": torch.cat(images),
            "labels": ids.masked_fill(ids == IMAGE, -100),
        }

    return call


@pytest.fixture
def make_trainer(tmp_path, examples, collate):
    """A watched trainer of an attached model."""

    def make(model, handle, callbacks, train_dataset=examples, data_collator=collate, **options):
        settings = {
            "output_dir": str(tmp_path),
            "max_steps": 6,
            "per_device_train_batch_size": 5,
            "learning_rate": 1e-3,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        trainer = WatchedTrainer(
            model=model,
            args=TrainingArguments(**(settings | options)),
            train_dataset=train_dataset,
            eval_dataset=examples[:5],
            data_collator=data_collator,
            callbacks=callbacks,
        )
        return trainer.watch(handle)

    return make
