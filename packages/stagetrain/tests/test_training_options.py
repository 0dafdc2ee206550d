from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlavaProcessor, TrainerCallback, TrainingArguments

from stagetrain import (
    Batches,
    CompressionSetting,
    ConversationCollator,
    ImageGroups,
    Schedule,
    SingleRecords,
    Stage,
    StageTrainer,
    attach,
    named_schedule,
    train,
)
from stagetrain.errors import ConfigError, TooManySkippedError
from vlmpress.data import Record

Make = Callable[..., Any]
STAGED = Schedule(
    "staged",
    (
        Stage(fraction=0.5, compression=CompressionSetting(layer=1, stride=2, compressor="random")),
        Stage(fraction=0.5),
    ),
)


class Logs(TrainerCallback):
    """Keeps what Trainer logs."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.kept.append({"step": state.global_step, **logs})


class Run:
    def __init__(self, make_model: Make, processor: LlavaProcessor, records: list[Record], folder: Path) -> None:
        self.make_model = make_model
        self.collator = ConversationCollator(processor, 4, seed=5)
        self.groups = ImageGroups(records)
        self.folder = folder

    def args(self, name: str = "out", **changes: Any) -> TrainingArguments:
        settings: dict[str, Any] = {
            "output_dir": str(self.folder / name),
            "max_steps": 6,
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 3,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return TrainingArguments(**{**settings, **changes})

    def __call__(self, schedule: Schedule = STAGED, model: Any = None, samples: Any = None, **changes: Any) -> Any:
        names = ("callbacks", "eval_samples", "eval_compression", "max_skipped", "processor")
        more = {name: changes.pop(name) for name in names if name in changes}
        model = self.make_model(3, dropout=0.1) if model is None else model
        return model, train(model, samples or self.groups, self.collator, schedule, self.args(**changes), **more)


@pytest.fixture
def run(make_model: Make, processor: LlavaProcessor, records: list[Record], tmp_path: Path) -> Run:
    return Run(make_model, processor, records, tmp_path)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_evaluation_changes_nothing(run: Run) -> None:
    plain, _ = run()
    evaluated, logs = {}, {}
    for kind in ("stage", "none"):
        kept = Logs()
        changes = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3, "eval_on_start": True}
        evaluated[kind], _ = run(eval_samples=run.groups, eval_compression=kind, callbacks=[kept], **changes)
        logs[kind] = {entry["step"]: entry["eval_loss"] for entry in kept.kept if "eval_loss" in entry}
    assert same_weights(plain, evaluated["stage"])
    assert same_weights(plain, evaluated["none"])
    assert list(logs["stage"]) == [0, 2, 4, 6]
    # Half of the steps are compressed.
    assert logs["stage"][2] != logs["none"][2]
    assert logs["stage"][6] == logs["none"][6]


def test_an_evaluation_is_the_mean_loss_as_compressed(run: Run) -> None:
    model = run.make_model(2)
    setting = CompressionSetting(layer=1, stride=2)
    schedule = Schedule("always", (Stage(fraction=1, compression=setting),))
    batches = Batches(run.groups, run.collator, 4, 2, 1)
    args = run.args(max_steps=1, learning_rate=0.0, per_device_eval_batch_size=4)
    attachment = attach(model)
    trainer = StageTrainer(model, args, schedule, batches, attachment=attachment, eval_dataset=batches)
    trainer.train()
    attachment.set(setting)
    model.eval()
    with torch.no_grad():
        expected = sum(float(model(**batches[item]).loss) for item in range(2)) / 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ConfigError, match="eval_compression"):
        StageTrainer(model, args, schedule, batches, eval_compression="half")
    with pytest.raises(ConfigError, match="expected 9 batches for 9 steps, got 2"):
        StageTrainer(model, run.args(max_steps=9), schedule, batches)


def test_logs_hold_stage_compression_and_throughput(run: Run) -> None:
    kept = Logs()
    run(callbacks=[kept], logging_steps=1)
    entries = [entry for entry in kept.kept if "loss" in entry]
    assert [entry["stage"] for entry in entries] == [1, 1, 1, 2, 2, 2]
    assert [entry["compression_layer"] for entry in entries] == [1, 1, 1, -1, -1, -1]
    assert [entry["compression_stride"] for entry in entries] == [2, 2, 2, 1, 1, 1]
    assert entries[0]["visual_tokens_kept"] == pytest.approx((1 + 2 / 2) / 3)
    assert entries[-1]["visual_tokens_kept"] == 1
    assert all(entry["tokens_per_second"] > 0 and entry["skipped_samples"] == 0 for entry in entries)


def test_tensorboard_holds_the_stage(run: Run) -> None:
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    run(report_to=["tensorboard"], logging_steps=1)
    (path,) = (run.folder / "out" / "runs").rglob("events.*")
    content, stages, place = path.read_bytes(), [], 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = events.Event.FromString(content[place + 12 : place + 12 + length])
        stages += [value.simple_value for value in event.summary.value if value.tag == "train/stage"]
        place += length + 16
    assert stages == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("changes", [{"bf16": True}, {"activation_checkpointing": True}])
def test_mixed_precision_and_checkpointing(run: Run, changes: dict[str, Any]) -> None:
    plain, expected = run(max_steps=12)
    model, result = run(max_steps=12, **changes)
    assert sum(result.losses[-3:]) < 0.8 * sum(result.losses[:3])
    assert result.losses == pytest.approx(expected.losses, rel=0.1)
    assert same_weights(plain, model) == ("activation_checkpointing" in changes)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_checkpoints_of_epochs_and_the_best_model(run: Run, processor: LlavaProcessor) -> None:
    changes = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    # So fast that every epoch is worse than the one before.
    model, _ = run(**changes, max_steps=-1, num_train_epochs=3, learning_rate=1.0, eval_samples=run.groups)
    names = sorted(path.name for path in (run.folder / "out").glob("checkpoint-*"))
    assert names == ["checkpoint-3", "checkpoint-6", "checkpoint-9"]
    state = (run.folder / "out" / "checkpoint-9" / "trainer_state.json").read_text(encoding="utf-8")
    best = next(name for name in names if f"/{name}" in state)
    assert ".checkpoint-draft" not in state
    saved = type(model).from_pretrained(run.folder / "out" / best)
    assert same_weights(model, saved)


def test_bad_samples_are_counted_up_to_a_limit(run: Run, records: list[Record]) -> None:
    gone = run.folder / "gone.png"
    samples = SingleRecords([*records[:10], replace(records[10], images=(gone,)), *records[11:16]])
    kept = Logs()
    _, result = run(samples=samples, per_device_train_batch_size=4, max_steps=8, callbacks=[kept], logging_steps=8)
    # Two epochs.
    assert len(result.skipped) == 2
    assert all("gone.png" in message for message in result.skipped)
    assert [entry["skipped_samples"] for entry in kept.kept if "skipped_samples" in entry] == [2]
    with pytest.raises(TooManySkippedError, match=r"at most 1 samples left out, got 2: .*gone\.png"):
        run(samples=samples, per_device_train_batch_size=4, max_steps=8, max_skipped=1)


def adapted(model: Any) -> Any:
    torch.manual_seed(0)
    targets = r".*language_model.*(q_proj|v_proj)"
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def test_adapters_train_and_go_on(run: Run) -> None:
    whole, expected = run(model=adapted(run.make_model(3, dropout=0.1)))
    for limit in (4, None):
        model = adapted(run.make_model(3, dropout=0.1))
        stopped = Stop(limit)
        _, result = run(model=model, callbacks=[stopped], save_strategy="steps", save_steps=2)
    assert result.resumed_from_step == 4
    assert result.losses == expected.losses
    assert same_weights(whole, model)
    assert not (run.folder / "out" / "checkpoint-6" / "model.safetensors").exists()


class Stop(TrainerCallback):
    """Ends a run early."""

    def __init__(self, step: int | None) -> None:
        self._step = step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self._step


def test_a_learned_compressor_trains_goes_on_and_stays(run: Run) -> None:
    schedule = Schedule(
        "learned", (Stage(fraction=1, compression=CompressionSetting(layer=0, stride=2, compressor="q_former")),)
    )
    whole, expected = run(schedule)
    for limit in (4, None):
        model = run.make_model(3, dropout=0.1)
        _, result = run(schedule, model, callbacks=[Stop(limit)], save_strategy="steps", save_steps=2)
    assert result.resumed_from_step == 4
    assert result.losses == expected.losses
    assert same_weights(whole, model)
    assert result.attachment.module is not None
    assert result.attachment.setting == schedule.stages[0].compression


def test_the_processor_is_in_every_checkpoint(run: Run, processor: LlavaProcessor) -> None:
    run(named_schedule("plain", 3), save_strategy="steps", save_steps=6, processor=processor)
    names = {path.name for path in (run.folder / "out" / "checkpoint-6").iterdir()}
    assert {"tokenizer.json", "processor_config.json"} <= names
