import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlavaProcessor

from stagetrain import (
    CompressionSetting,
    ConversationCollator,
    ImageGroups,
    Sample,
    Schedule,
    Stage,
    StepBatches,
    TrainConfig,
    TrainResult,
    edge_schedule,
    learning_rate_factor,
    named_schedule,
    train,
)
from stagetrain.errors import CheckpointError, ConfigError, DivergedError, PoolingUnsupportedError, ScheduleError
from vlmpress.data import Record

Make = Callable[..., Any]
PROJECTOR = "model.multi_modal_projector."
STAGED = Schedule(
    "staged",
    (
        Stage(
            fraction=0.3,
            compression=CompressionSetting(layer=1, stride=2),
            trainable=(PROJECTOR,),
            learning_rate_scale=2.0,
        ),
        Stage(fraction=0.4, compression=CompressionSetting(layer=1, stride=3)),
        Stage(fraction=0.3),
    ),
)


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{"num_steps": 12, "learning_rate": 3e-3, "images_per_step": 3, "warmup_steps": 2, **changes})


class Run:
    """Trains a new tiny model on the test records."""

    def __init__(self, make_model: Make, processor: LlavaProcessor, records: list[Record]) -> None:
        self._make_model = make_model
        self._processor = processor
        self._groups = ImageGroups(records)

    def __call__(
        self,
        settings: TrainConfig,
        schedule: Schedule = STAGED,
        folder: Path | None = None,
        stop_after: int | None = None,
        model: Any = None,
    ) -> tuple[Any, TrainResult | None]:
        model = self._make_model(3, dropout=0.1) if model is None else model
        collator = ConversationCollator(self._processor, 4, 4, seed=5)

        def on_progress(done: int, total: int, note: str) -> None:
            if done == stop_after:
                raise InterruptedError

        try:
            return model, train(
                model, self._groups, collator, schedule, settings, checkpoint_dir=folder, on_progress=on_progress
            )
        except InterruptedError:
            return model, None


@pytest.fixture
def run(make_model: Make, processor: LlavaProcessor, records: list[Record]) -> Run:
    return Run(make_model, processor, records)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_loss_falls_and_the_stages_follow_the_step(run: Run) -> None:
    _, result = run(config(num_steps=60, images_per_step=4))
    assert result is not None
    assert result.num_steps == len(result.losses) == 60
    assert result.resumed_from_step is None
    assert sum(result.losses[-5:]) < 0.2 * sum(result.losses[:5])
    assert [(entry.step, entry.index) for entry in result.stages] == [(0, 0), (18, 1), (42, 2)]


@pytest.mark.parametrize("stop_after", [3, 5, 11])
def test_an_interrupted_run_ends_with_the_same_weights(run: Run, tmp_path: Path, stop_after: int) -> None:
    whole, expected = run(config())
    _, nothing = run(config(save_every_steps=2), folder=tmp_path, stop_after=stop_after)
    assert nothing is None
    resumed, result = run(config(save_every_steps=5), folder=tmp_path)
    assert expected is not None
    assert result is not None
    assert result.resumed_from_step == stop_after // 2 * 2
    assert result.losses == expected.losses
    assert same_weights(whole, resumed)
    names = {path.name for path in (tmp_path / "checkpoint-12").iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "run.json", "trainer_state.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-12"]


def test_a_finished_run_is_not_run_again(run: Run, tmp_path: Path) -> None:
    first, _ = run(config(save_every_steps=100), folder=tmp_path)
    again, result = run(config(save_every_steps=100), folder=tmp_path)
    assert result is not None
    assert (result.resumed_from_step, result.num_steps, len(result.losses), result.stages) == (12, 12, 12, ())
    assert same_weights(first, again)


def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path) -> None:
    script = Path(__file__).with_name("train_script.py")

    def start(folder: str, *kill_at: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(tmp_path / folder), *kill_at]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    killed = start("killed", "7")
    assert killed.returncode == -signal.SIGKILL
    resumed, whole = start("killed"), start("whole")
    assert resumed.returncode == whole.returncode == 0, resumed.stderr + whole.stderr
    assert resumed.stdout.split()[0] == "4"
    assert resumed.stdout.split()[1:] == whole.stdout.split()[1:]
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_a_stage_trains_what_it_names_and_nothing_else(run: Run, make_model: Make) -> None:
    before = make_model(3, dropout=0.1)
    model, _ = run(config(), Schedule("first", (Stage(fraction=1, trainable=(PROJECTOR,)),)))
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new) != name.startswith(PROJECTOR), name


def test_what_was_frozen_stays_frozen_and_the_model_comes_back_as_it_was(run: Run, make_model: Make) -> None:
    model, before = make_model(3), make_model(3)
    model.model.vision_tower.requires_grad_(False)
    caching = model.config.get_text_config().use_cache
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    run(config(num_steps=4), edge_schedule([PROJECTOR], 0.5), model=model)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert not model.training
    assert model.config.get_text_config().use_cache == caching
    assert model.config.to_dict() == before.config.to_dict()
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert same_weights(model.model.vision_tower, before.model.vision_tower)


def test_steps_equal_a_plain_loop(make_model: Make, processor: LlavaProcessor, records: list[Record]) -> None:
    settings = config(num_steps=5, weight_decay=0.0)
    groups, collator = ImageGroups(records), ConversationCollator(processor, 4)
    model, plain = make_model(2), make_model(2).train()
    result = train(model, groups, collator, named_schedule("plain", 2), settings)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=settings.betas, weight_decay=0.0, fused=True)
    batches = StepBatches(groups, collator, 3, 5, settings.seed)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(settings, step)
        loss = plain(**batches[step]).loss
        assert loss.item() == pytest.approx(result.losses[step], rel=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for trained, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-5)


class Texts:
    """A collator of random text for a decoder alone."""

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        return sample

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        ids = torch.arange(8).repeat(len(samples), 1)
        return {"input_ids": ids, "labels": ids}


def test_other_models_train_in_stages_without_pooling() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, pad_token_id=0, **sizes))
    samples = [Sample(None, ())]
    result = train(model, samples, Texts(), edge_schedule(["lm_head"]), config(num_steps=20, warmup_steps=0))
    assert result.losses[-1] < result.losses[0]
    with pytest.raises(PoolingUnsupportedError, match="stages without pooling"):
        train(model, samples, Texts(), STAGED, config())


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(run: Run, tmp_path: Path) -> None:
    run(config(save_every_steps=4), folder=tmp_path, stop_after=5)
    with pytest.raises(CheckpointError, match="schedule: expected"):
        run(config(save_every_steps=4), named_schedule("plain", 3), folder=tmp_path)
    with pytest.raises(CheckpointError, match="config: expected"):
        run(config(save_every_steps=4, seed=1), folder=tmp_path)
    path = tmp_path / "checkpoint-4" / "optimizer.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        run(config(save_every_steps=4), folder=tmp_path)
    (path.parent / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        run(config(save_every_steps=4), folder=tmp_path)


def test_what_cannot_be_trained_is_refused_at_once(run: Run, make_model: Make) -> None:
    with pytest.raises(ScheduleError, match="begin with nothing"):
        run(config(), Schedule("none", (Stage(fraction=0.5), Stage(fraction=0.5, trainable=("nothing",)))))
    with pytest.raises(ScheduleError, match="expected a layer"):
        run(
            config(),
            Schedule(
                "deep", (Stage(fraction=0.5), Stage(fraction=0.5, compression=CompressionSetting(layer=3, stride=2)))
            ),
        )
    with pytest.raises(ConfigError, match="a checkpoint directory"):
        run(config(save_every_steps=1))
    with pytest.raises(ConfigError, match="at least one sample"):
        train(make_model(2), [], Texts(), named_schedule("plain", 2), config())
    broken = make_model(3)
    torch.nn.init.constant_(broken.model.multi_modal_projector.linear_1.weight, float("nan"))
    with pytest.raises(DivergedError, match="step 0"):
        run(config(), named_schedule("plain", 3), model=broken)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("warmup_stable_decay", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806]),
    ],
)
def test_learning_rates(schedule: Any, expected: list[float]) -> None:
    settings = TrainConfig(num_steps=10, learning_rate=1.0, warmup_steps=2, lr_schedule=schedule, decay_fraction=0.4)
    assert [learning_rate_factor(settings, step) for step in range(10)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"images_per_step": 0},
        {"warmup_steps": -1},
        {"lr_schedule": "linear"},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1},
        {"max_grad_norm": -1.0},
        {"save_every_steps": -1},
        {"save_every_steps": 0},
        {"decay_fraction": 0.0},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        config(**change)
