"""Trains a tiny model in a process of its own: train_script.py FOLDER [STEP to be killed after]."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file

from stagetrain import CompressionSetting, ConversationCollator, ImageGroups, Schedule, Stage, TrainConfig, train

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
assert spec is not None
assert spec.loader is not None
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

SCHEDULE = Schedule(
    "staged",
    (
        Stage(
            fraction=0.3,
            compression=CompressionSetting(layer=1, stride=2),
            trainable=("model.multi_modal_projector.",),
            learning_rate_scale=2.0,
        ),
        Stage(fraction=0.4, compression=CompressionSetting(layer=1, stride=3)),
        Stage(fraction=0.3),
    ),
)


def main() -> None:
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None
    folder.mkdir(exist_ok=True)

    def on_progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model = tiny.make_model(3, dropout=0.1)
    config = TrainConfig(num_steps=12, learning_rate=3e-3, images_per_step=3, warmup_steps=2, save_every_steps=4)
    collator = ConversationCollator(tiny.make_processor(16), 4, 4, seed=5)
    groups = ImageGroups(tiny.make_records(folder, 5))
    result = train(model, groups, collator, SCHEDULE, config, checkpoint_dir=folder / "run", on_progress=on_progress)
    save_file({name: value.data for name, value in model.named_parameters()}, folder / "weights.safetensors")
    sys.stdout.write(" ".join(map(str, (result.resumed_from_step, *result.losses))))


if __name__ == "__main__":
    main()
