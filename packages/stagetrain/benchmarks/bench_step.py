"""Time per optimizer step of `train` against a bare PyTorch loop on the same batches.

CPU time of one thread, so that a busy machine does not show; setting the Trainer up is timed too.
Uses a Llava of 4 layers with random weights, 64 visual tokens, 16 images of 6 questions a step.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import TrainingArguments

from stagetrain import (
    Batches,
    CompressionSetting,
    ConversationCollator,
    ImageGroups,
    LearningRateCurve,
    Schedule,
    Stage,
    train,
)
from vlmpress.data import Record, Turn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from conftest import make_model, make_processor

CURVE = LearningRateCurve()
COLOURS = ("red", "green", "blue", "yellow")


def records(folder: Path, num_images: int) -> list[Record]:
    made = []
    for index, colour in zip(range(num_images), itertools.cycle(COLOURS), strict=False):
        path = folder / f"{index}.png"
        Image.new("RGB", (64, 64), colour).save(path)
        for number, other in enumerate((*COLOURS, *COLOURS)):
            turn = Turn(f"is this {other} or is it not", "yes" if other == colour else "no")
            made.append(Record(f"{index}.{number}", (path,), (turn,)))
        made += [Record(f"{index}.c{i}", (path,), (Turn("what colour is this", colour),)) for i in range(6)]
    return made


def bare_loop(groups: ImageGroups, collator: ConversationCollator, args: TrainingArguments) -> float:
    """CPU seconds of a loop that does no more than the optimizer needs."""
    model = make_model(4, 64).train()
    model.config.text_config.use_cache = False
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, args.adam_beta2), weight_decay=0.01, fused=True
    )
    batches = Batches(groups, collator, args.per_device_train_batch_size, args.max_steps, args.seed)
    start_s = time.process_time()
    for step in range(args.max_steps):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * CURVE.factor(step, args.max_steps)
        model(**batches[step]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - start_s


def with_train(groups: ImageGroups, collator: ConversationCollator, args: TrainingArguments, stage: Stage) -> float:
    model = make_model(4, 64)
    start_s = time.process_time()
    train(model, groups, collator, Schedule("bench", (stage,)), args, curve=CURVE)
    return time.process_time() - start_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            adam_beta2=0.98,
            weight_decay=0.01,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        groups = ImageGroups(records(Path(folder), 64))
        collator = ConversationCollator(make_processor(64), 6)
        bare_loop(groups, collator, args)
        stages = {
            "train": Stage(fraction=1),
            "pooled (1, 8)": Stage(fraction=1, compression=CompressionSetting(layer=1, stride=8)),
        }
        times: dict[str, list[float]] = {"bare loop": [], **{name: [] for name in stages}}
        for _ in range(arguments.repeats):
            times["bare loop"].append(bare_loop(groups, collator, args))
            for name, stage in stages.items():
                times[name].append(with_train(groups, collator, args, stage))
    for name, seconds in times.items():
        print(f"{name:<16}{1000 * min(seconds) / arguments.steps:8.1f} ms CPU a step (best of {arguments.repeats})")


if __name__ == "__main__":
    main()
