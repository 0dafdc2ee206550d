"""AuroraEdge's stages as its Tables 1 and 2 say: each with its own rates, batches, epochs and parameters."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaProcessor, TrainerCallback, TrainingArguments

from stagetrain import ConversationCollator, Schedule, SingleRecords, Stage, train
from stagetrain.errors import ConfigError, ScheduleError
from stagetrain.loop.parameter_groups import group_of
from stagetrain.loop.stage_rates import check_any_scheduler
from stagetrain.runs.run_config import read_run_config
from stagetrain.runs.running import execute, prepare
from stagetrain.samples.groups import Sample
from vlmpress.data import Record, write_records

Make = Callable[..., Any]
NUM_SAMPLES = 48
# Table 1 on 48 samples: 3 epochs in batches of 32, twice, and 2 epochs in batches of 16; a last batch is filled up.
STEPS = (5, 5, 6)


class Watch(TrainerCallback):
    """What each step trains with: rates, parameters that changed, and steps the optimizer counts."""

    def __init__(self, model: Any) -> None:
        self.rates: list[float] = []
        self.changed: list[set[str]] = []
        self.counted: list[int] = []
        self._model = model
        self._before: dict[str, torch.Tensor] = {}

    def on_step_begin(self, *_: Any, **kwargs: Any) -> None:
        self._before = {name: value.detach().clone() for name, value in self._model.named_parameters()}

    def on_pre_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        (rate,) = {group["lr"] for group in kwargs["optimizer"].param_groups}
        self.rates.append(rate)

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        groups = {
            group_of(name)
            for name, value in self._model.named_parameters()
            if not torch.equal(value, self._before[name])
        }
        self.changed.append(groups)
        self.counted.append(max(int(state["step"]) for state in kwargs["optimizer"].state.values()))


class Seen:
    """A collator that notes what it is given."""

    def __init__(self, inner: ConversationCollator) -> None:
        self._inner = inner
        self.batches: list[list[str]] = []
        self.epochs: list[int] = []

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        self.epochs.append(epoch)
        return self._inner.draw(sample, epoch, index)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        self.batches.append([sample.records[0].id for sample in samples])
        return self._inner(samples)


@pytest.fixture
def preset(tmp_path: Path, make_model: Make, make_processor: Make, records: list[Record]) -> list[str]:
    """Arguments of the preset, for a tiny model on `NUM_SAMPLES` records."""
    make_model(2, image_size=64).save_pretrained(tmp_path / "model")
    make_processor(64).save_pretrained(tmp_path / "model")
    folder = records[0].images[0].parent
    assert len(records) == NUM_SAMPLES
    write_records(tmp_path / "data.jsonl", records, folder)
    places = {"model": "model", "data.records": "data.jsonl", "data.images": folder, "out": "out"}
    changes = [f"{name}={tmp_path / path}" for name, path in places.items()]
    return [*changes, "training.bf16=false", "training.use_cpu=true", "training.dataloader_num_workers=0"]


def paper_rate(step: int) -> float:
    """Table 1, written out: linear warmup over 3% of the stage's steps, then half a cosine to 0."""
    for num_steps, peak in zip(STEPS, (1e-3, 2e-5, 1e-6), strict=True):
        if step < num_steps:
            num_warmup = math.ceil(0.03 * num_steps)
            if step < num_warmup:
                return peak * step / num_warmup
            return peak * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup))) / 2
        step -= num_steps
    raise AssertionError


def test_the_preset_is_tables_1_and_2(preset: list[str]) -> None:
    run = prepare(read_run_config("auroraedge", [*preset, "training.save_strategy='no'"]))
    assert [(plan.num_steps, plan.samples_per_step) for plan in run.plan] == list(zip(STEPS, (32, 32, 16), strict=True))
    assert run.args.optim.value.startswith("adamw")
    watch = Watch(run.model)
    result = execute(run, callbacks=[watch])
    assert result.num_steps == sum(STEPS)
    assert watch.rates == pytest.approx([paper_rate(step) for step in range(sum(STEPS))], rel=1e-12)
    trains = [{"connectors"}, {"connectors", "language"}, {"connectors", "language", "vision"}]
    expected = [groups for num_steps, groups in zip(STEPS, trains, strict=True) for _ in range(num_steps)]
    # Warmup begins with a rate of 0, and at 1e-6 the last of a cosine is below what a float32 weight can show.
    first = [0, STEPS[0], STEPS[0] + STEPS[1]]
    assert all(watch.changed[step] == set() for step in first)
    assert all(now <= whole for now, whole in zip(watch.changed, expected, strict=True))
    assert all(watch.changed[step + 1] == expected[step + 1] for step in first)
    # The optimizer counts its steps from the beginning of each stage.
    assert watch.counted == [step + 1 for num_steps in STEPS for step in range(num_steps)]


def test_each_stage_begins_an_epoch_of_its_own(
    tmp_path: Path, make_model: Make, processor: LlavaProcessor, records: list[Record]
) -> None:
    schedule = Schedule(
        "two", (Stage(fraction=0.5), Stage(fraction=0.5, batch_size_scale=0.5, learning_rate_scale=0.1)), restarts=True
    )
    # 24 samples; 3 steps of 2 micro-batches of 8 are 2 epochs, 3 steps of 2 micro-batches of 4 are one.
    samples, seen = SingleRecords(records[:24]), Seen(ConversationCollator(processor, seed=1))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    train(make_model(2), samples, seen, schedule, args)
    assert [len(batch) for batch in seen.batches] == [8] * 6 + [4] * 6
    stages = [list(chain(*seen.batches[:6])), list(chain(*seen.batches[6:]))]
    names = {record.id for record in records[:24]}
    assert Counter(stages[0]) == dict.fromkeys(names, 2)
    assert Counter(stages[1]) == dict.fromkeys(names, 1)
    assert len({tuple(each) for each in (stages[0][:24], stages[0][24:], stages[1])}) == 3
    assert seen.epochs == [0] * 24 + [1] * 24 + [2] * 24


def test_what_does_not_follow_from_the_step_is_refused(
    tmp_path: Path, make_model: Make, processor: LlavaProcessor, records: list[Record]
) -> None:
    schedule = Schedule("two", (Stage(fraction=0.5), Stage(fraction=0.5)), restarts=True)
    settings: dict[str, Any] = {"report_to": [], "use_cpu": True, "max_steps": 2, "save_strategy": "no"}
    with pytest.raises(ConfigError, match="expected one that follows from the step"):
        check_any_scheduler(schedule, "greedy")
    odd = Schedule("odd", (Stage(fraction=1.0, batch_size_scale=0.3),))
    args = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, **settings)
    with pytest.raises(ScheduleError, match="batches of 2 a whole number of samples, got 0"):
        train(make_model(2), SingleRecords(records), ConversationCollator(processor), odd, args)


def test_max_steps_shorten_every_stage(preset: list[str]) -> None:
    run = prepare(read_run_config("auroraedge", [*preset, "training.max_steps=8"]))
    assert [plan.num_steps for plan in run.plan] == [3, 2, 3]
    assert json.dumps(run.schedule.borders(8)) == "[0, 3, 5, 8]"
