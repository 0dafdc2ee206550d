"""Trains a tiny model in processes of its own: train_script.py FOLDER:WORKERS:STEP,STEP...[:restarts] ...

For every STEP a process is killed when it has done that step; then a last one goes on to the end. They are forks of
this one, which has everything imported.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import TrainingArguments

from stagetrain import CompressionSetting, ConversationCollator, ImageGroups, Schedule, Stage, train

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

NUM_STEPS = 24
PROJECTOR = "model.multi_modal_projector."
SCHEDULE = Schedule(
    "staged",
    (
        Stage(
            fraction=0.25,
            compression=CompressionSetting(layer=1, stride=2),
            trainable=(PROJECTOR,),
            learning_rate_scale=2.0,
        ),
        Stage(fraction=0.25, compression=CompressionSetting(layer=1, stride=3, compressor="random")),
        Stage(fraction=0.25, trainable=("language",), learning_rate_scale=0.5),
        Stage(fraction=0.25),
    ),
)
RESTARTS = Schedule(
    "restarts",
    (
        Stage(fraction=0.25, trainable=("connectors",)),
        Stage(fraction=0.25, trainable=("connectors", "language"), learning_rate_scale=0.5),
        Stage(fraction=0.5, learning_rate_scale=0.2, batch_size_scale=0.5),
    ),
    restarts=True,
)


def run(folder: Path, num_workers: int, kill_at: int | None, schedule: Schedule) -> None:
    def on_progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = tiny.make_model(3, dropout=0.1)
    args = TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=NUM_STEPS,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=2,
        save_total_limit=2,
        dataloader_num_workers=num_workers,
        logging_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    collator = ConversationCollator(tiny.make_processor(16), 4, seed=5)
    groups = ImageGroups(tiny.make_records(folder, 5))
    result = train(model, groups, collator, schedule, args, on_progress=on_progress)
    save_file({name: value.data for name, value in model.named_parameters()}, folder / "weights.safetensors")
    (folder / "losses.json").write_text(json.dumps([result.resumed_from_step, *result.losses]), encoding="utf-8")


def forked(*settings: Any) -> int:
    """Exit code of a process that trains; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(*settings)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    for argument in sys.argv[1:]:
        name, num_workers, steps, *changed = argument.split(":")
        folder, kills = Path(name), [int(step) for step in steps.split(",") if step]
        folder.mkdir(exist_ok=True)
        schedule = RESTARTS if changed else SCHEDULE
        codes = [forked(folder, int(num_workers), step, schedule) for step in [*kills, None]]
        expected = [-signal.SIGKILL] * len(kills) + [0]
        if codes != expected:
            sys.exit(f"{argument}: expected exit codes {expected}, got {codes}")


if __name__ == "__main__":
    main()
