import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaProcessor, TrainingArguments

from stagetrain import (
    CompressionSetting,
    ConversationCollator,
    ImageGroups,
    Schedule,
    Stage,
    TrainResult,
    named_schedule,
    train,
)
from stagetrain.errors import CheckpointError
from stagetrain.loop import checkpoints
from vlmpress.data import Record

Make = Callable[..., Any]
NUM_STEPS = 24
STAGED = Schedule(
    "staged",
    (
        Stage(fraction=0.3, compression=CompressionSetting(layer=1, stride=2), trainable=("connectors",)),
        Stage(fraction=0.4, compression=CompressionSetting(layer=1, stride=3)),
        Stage(fraction=0.3),
    ),
)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 12,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 3,
        "save_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**{**settings, **changes})


class Run:
    """Trains a new tiny model on the test records."""

    def __init__(self, make_model: Make, processor: LlavaProcessor, records: list[Record]) -> None:
        self._make_model = make_model
        self._collator = ConversationCollator(processor, 4, seed=5)
        self._groups = ImageGroups(records)

    def __call__(
        self, args: TrainingArguments, schedule: Schedule = STAGED, stop_after: int | None = None, **more: Any
    ) -> tuple[Any, TrainResult | None]:
        model = self._make_model(3, dropout=0.1)

        def on_progress(done: int, total: int, note: str) -> None:
            if done == stop_after:
                raise InterruptedError

        try:
            return model, train(model, self._groups, self._collator, schedule, args, on_progress=on_progress, **more)
        except InterruptedError:
            return model, None


@pytest.fixture
def run(make_model: Make, processor: LlavaProcessor, records: list[Record]) -> Run:
    return Run(make_model, processor, records)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def train_in_processes(*arguments: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("train_script.py")), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_killed_ten_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    steps = sorted(random.Random(0).sample(range(2, NUM_STEPS), 10))
    assert {step * 4 // NUM_STEPS for step in steps} == {0, 1, 2, 3}
    train_in_processes(
        f"{tmp_path / 'whole'}:0:",
        f"{tmp_path / 'killed'}:0:{','.join(map(str, steps))}",
        f"{tmp_path / 'workers'}:2:9",
    )
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed", "workers")]
    assert weights[0] == weights[1] == weights[2]
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("whole", "killed", "workers")]
    assert [each[0] for each in losses] == [None, steps[-1] // 2 * 2, 8]
    assert losses[0][1:] == losses[1][1:] == losses[2][1:]
    assert len(losses[0]) == NUM_STEPS + 1


def test_a_run_killed_at_the_borders_of_stages_that_begin_anew_ends_with_the_same_bits(tmp_path: Path) -> None:
    # Borders are 6 and 12, checkpoints every 2 steps: runs go on from a border and from the steps beside it.
    train_in_processes(f"{tmp_path / 'whole'}:0::restarts", f"{tmp_path / 'killed'}:2:7,11,13:restarts")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("whole", "killed")]
    assert [each[0] for each in losses] == [None, 12]
    assert losses[0][1:] == losses[1][1:]


@pytest.mark.parametrize("stop_after", [5, 11])
def test_an_interrupted_run_ends_with_the_same_weights(run: Run, tmp_path: Path, stop_after: int) -> None:
    whole, expected = run(arguments(tmp_path / "whole", save_strategy="no"))
    _, nothing = run(arguments(tmp_path / "run", save_steps=2), stop_after=stop_after)
    assert nothing is None
    resumed, result = run(arguments(tmp_path / "run", save_steps=5, save_total_limit=1))
    assert expected is not None
    assert result is not None
    assert result.resumed_from_step == stop_after // 2 * 2
    assert result.losses == expected.losses
    assert same_weights(whole, resumed)
    names = {path.name for path in (tmp_path / "run" / "checkpoint-12").iterdir()}
    standard = {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert names >= {*standard, "trainer_state.json", "training_args.bin", "run.json"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-12"]


def test_a_finished_run_is_not_run_again(run: Run, tmp_path: Path) -> None:
    # 8 samples in batches of 3 are 3 steps an epoch: 11 steps end within one.
    first, _ = run(arguments(tmp_path, max_steps=11))
    again, result = run(arguments(tmp_path, max_steps=11))
    assert result is not None
    assert (result.resumed_from_step, result.num_steps, len(result.losses), result.stages) == (11, 11, 11, ())
    assert same_weights(first, again)
    _, afresh = run(arguments(tmp_path, max_steps=11), resume_from_checkpoint=False)
    assert afresh is not None
    assert afresh.resumed_from_step is None


def test_a_checkpoint_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    run(arguments(tmp_path), stop_after=5)
    with pytest.raises(CheckpointError, match=r"checkpoint-4: schedule: expected \[.* got \["):
        run(arguments(tmp_path), named_schedule("plain", 3))
    with pytest.raises(CheckpointError, match=r"training\.seed: expected 1, got 42"):
        run(arguments(tmp_path, seed=1))
    with pytest.raises(CheckpointError, match=r"training\.learning_rate: expected 0\.1, got 0\.003"):
        run(arguments(tmp_path, learning_rate=0.1))
    with pytest.raises(CheckpointError, match="num_trainable"):
        run(arguments(tmp_path), freeze=["vision"])
    with pytest.raises(CheckpointError, match="expected a checkpoint to go on from, got none"):
        run(arguments(tmp_path / "other"), resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run(arguments(tmp_path), resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_left_out_for_an_older_one(run: Run, tmp_path: Path) -> None:
    whole, _ = run(arguments(tmp_path / "whole"))
    run(arguments(tmp_path / "run"), stop_after=9)
    newest = tmp_path / "run" / "checkpoint-8"
    path = newest / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: expected \d+ bytes of CRC-32 \d+, got 1000 bytes"):
        run(arguments(tmp_path / "run"), resume_from_checkpoint=str(newest))
    resumed, result = run(arguments(tmp_path / "run"))
    assert result is not None
    assert result.resumed_from_step == 4
    assert same_weights(whole, resumed)
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected \d+ bytes of CRC-32"):
        run(arguments(tmp_path / "run"))


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = checkpoints.publish

    def fail(draft: Path, target: Path, content: Any) -> None:
        if target.name == "checkpoint-8":
            (draft / "model.safetensors").unlink()
            raise InterruptedError
        publish(draft, target, content)

    monkeypatch.setattr(checkpoints, "publish", fail)
    monkeypatch.setattr(checkpoints, "drop_draft", lambda folder: None)
    run(arguments(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", ".checkpoint-draft"}
    monkeypatch.undo()
    _, result = run(arguments(tmp_path))
    assert result is not None
    assert result.resumed_from_step == 4
    assert not (tmp_path / ".checkpoint-draft").exists()


def test_a_frozen_parameter_keeps_its_optimizer_state(run: Run, tmp_path: Path) -> None:
    schedule = Schedule("two", (Stage(fraction=0.5), Stage(fraction=0.5, trainable=("connectors",))))
    run(arguments(tmp_path, save_steps=6), schedule)
    states = [
        torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)["state"]  # noqa: TID251  # Trainer's format
        for step in (6, 12)
    ]
    frozen = [index for index, state in states[1].items() if state["step"] == 6]
    assert len(states[1]) - len(frozen) == 4  # two linear maps with biases
    for index in frozen:
        for name, value in states[0][index].items():
            assert torch.equal(value, states[1][index][name])
