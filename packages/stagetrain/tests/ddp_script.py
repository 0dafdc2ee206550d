"""Trains a tiny model on mixed rows, as one of several processes where torchrun's variables say so.

ddp_script.py FOLDER BATCH PARTS
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainingArguments

from stagetrain import Batches, CompressionSetting, ConversationCollator, Schedule, SingleRecords, Stage, train
from vlmpress.data import Record, Turn

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SCHEDULE = Schedule(
    "staged",
    (
        Stage(fraction=0.5, compression=CompressionSetting(layer=1, stride=2), trainable=("connectors",)),
        Stage(fraction=0.25, trainable=("language",)),
        Stage(fraction=0.25),
    ),
)


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **kwargs: Any) -> None:
        named = model.named_parameters()
        self.kept = {
            name.removeprefix("module."): value.grad.clone() for name, value in named if value.grad is not None
        }


def mixed_records(folder: Path) -> list[Record]:
    """Six records of images and fourteen of text, with answers of unequal length."""
    pictures = tiny.make_records(folder, 6)[::6]
    words = ("red", "green blue", "yellow", "red green blue")
    texts = [Record(f"t{i}", (), (Turn("what is this", words[i % 4]), Turn("is it red", "no"))) for i in range(14)]
    gone = Record("gone", (folder / "gone.png",), (Turn("what colour is this", "red"),))
    return [*pictures, gone, *texts]


def main() -> None:
    folder, batch, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(exist_ok=True, parents=True)
    samples = SingleRecords(mixed_records(folder))
    collator = ConversationCollator(tiny.make_processor(16), seed=5)

    def fit(steps: int, name: str, dropout: float = 0.0, **changes: Any) -> Any:
        settings: dict[str, Any] = {"save_strategy": "no", "optim": "sgd", "learning_rate": 0.05, **changes}
        args = TrainingArguments(
            output_dir=str(folder / name),
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=parts,
            max_grad_norm=0,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
            **settings,
        )
        model, kept = tiny.make_model(3, dropout=dropout), Gradients()
        result = train(model, samples, collator, SCHEDULE, args, callbacks=[kept])
        if args.process_index == 0:
            save_file({key: value.data for key, value in model.named_parameters()}, folder / f"{name}.safetensors")
            save_file(kept.kept, folder / f"{name}-gradients.safetensors")
            losses = torch.tensor(result.losses, dtype=torch.float64)
            skipped = torch.tensor([len(result.skipped)])
            save_file({"losses": losses, "skipped": skipped}, folder / f"{name}-losses.safetensors")
        return args

    args = fit(1, "one")
    batches = Batches(samples, collator, 4, 16, 3)
    blind = ["pixel_values" not in batches[item] for item in range(16)]
    # One rank without an image while connectors alone train, and a step where no rank has one.
    assert any(blind[2 * step] != blind[2 * step + 1] for step in range(4)), blind
    fit(8, "staged", dropout=0.1 if parts * args.world_size == 2 else 0.0)
    fit(8, "resumed", dropout=0.1 if parts * args.world_size == 2 else 0.0, save_strategy="steps", save_steps=3)
    for stale in ("checkpoint-6", "checkpoint-8"):
        if args.process_index == 0:
            (folder / "resumed" / stale).rename(folder / stale)
    fit(8, "resumed", dropout=0.1 if parts * args.world_size == 2 else 0.0, save_strategy="steps", save_steps=3)


if __name__ == "__main__":
    main()
