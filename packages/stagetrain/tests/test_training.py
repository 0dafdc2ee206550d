from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlavaProcessor, TrainerCallback, TrainingArguments

from stagetrain import (
    Batches,
    CompressionSetting,
    ConversationCollator,
    ImageGroups,
    LearningRateCurve,
    Sample,
    Schedule,
    Stage,
    edge_schedule,
    named_schedule,
    train,
)
from stagetrain.errors import ConfigError, DivergedError, FeatureCacheError, PoolingUnsupportedError, ScheduleError
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


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 12,
        "learning_rate": 3e-3,
        "adam_beta2": 0.98,
        "per_device_train_batch_size": 3,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(**{**settings, **changes})


class Run:
    """Trains a tiny model on the test records."""

    def __init__(self, make_model: Make, processor: LlavaProcessor, records: list[Record], folder: Path) -> None:
        self.make_model = make_model
        self.collator = ConversationCollator(processor, 4, seed=5)
        self.groups = ImageGroups(records)
        self.folder = folder

    def __call__(self, schedule: Schedule = STAGED, model: Any = None, **changes: Any) -> tuple[Any, Any]:
        own = ("freeze", "callbacks", "eval_samples", "curve", "feature_cache_bytes")
        more = {name: changes.pop(name) for name in own if name in changes}
        model = self.make_model(3, dropout=0.1) if model is None else model
        args = arguments(self.folder / "out", **changes)
        return model, train(model, self.groups, self.collator, schedule, args, **more)


@pytest.fixture
def run(make_model: Make, processor: LlavaProcessor, records: list[Record], tmp_path: Path) -> Run:
    return Run(make_model, processor, records, tmp_path)


def same_weights(first: Any, second: Any) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_the_loss_falls_and_the_stages_follow_the_step(run: Run) -> None:
    _, result = run(max_steps=60, per_device_train_batch_size=4)
    assert result.num_steps == len(result.losses) == 60
    assert result.resumed_from_step is None
    assert result.skipped == ()
    assert sum(result.losses[-5:]) < 0.2 * sum(result.losses[:5])
    assert [(entry.step, entry.index) for entry in result.stages] == [(0, 0), (18, 1), (42, 2)]
    assert all(rate > 0 for rate in result.tokens_per_second)


def test_features_of_a_frozen_tower_are_kept(run: Run) -> None:
    plain, first = run(max_steps=6, freeze=["vision"])
    cached, second = run(max_steps=6, freeze=["vision"], feature_cache_bytes=1 << 20)
    assert first.losses == pytest.approx(second.losses, rel=1e-4)
    assert "forward" not in vars(cached.model.vision_tower)
    for one, other in zip(plain.parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(FeatureCacheError):
        run(max_steps=6, feature_cache_bytes=1 << 20)


def test_epochs_count_samples(run: Run) -> None:
    # 8 samples in batches of 3 are 3 steps.
    _, result = run(max_steps=-1, num_train_epochs=2)
    assert result.num_steps == 6
    assert [entry.step for entry in result.stages] == [0, 2, 4]
    _, result = run(max_steps=-1, num_train_epochs=0.5)
    assert result.num_steps == 2


def test_a_stage_trains_what_it_names_and_nothing_else(run: Run) -> None:
    before = run.make_model(3, dropout=0.1)
    for name in (PROJECTOR, "connectors"):
        model, _ = run(Schedule("first", (Stage(fraction=1, trainable=(name,)),)), max_steps=3)
        for (own, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(old, new) != own.startswith(PROJECTOR), own


def test_what_was_frozen_stays_frozen_and_the_model_comes_back_as_it_was(run: Run) -> None:
    model, before = run.make_model(3), run.make_model(3)
    model.model.multi_modal_projector.linear_1.bias.requires_grad_(False)
    caching = model.config.get_text_config().use_cache
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    schedule = Schedule("two", (Stage(fraction=0.5, trainable=(PROJECTOR,)), STAGED.stages[1], Stage(fraction=0.1)))
    run(schedule, model, max_steps=4, freeze=["vision"], activation_checkpointing=True, bf16=True)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert not model.training
    assert not model.is_activation_checkpointing
    assert "forward" not in vars(model)
    assert model.config.get_text_config().use_cache == caching
    assert model.config.to_dict() == before.config.to_dict()
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == []
    assert not model._forward_hooks
    assert not model.get_input_embeddings()._forward_hooks
    assert same_weights(model.model.vision_tower, before.model.vision_tower)
    assert torch.equal(
        model.model.multi_modal_projector.linear_1.bias, before.model.multi_modal_projector.linear_1.bias
    )
    assert not same_weights(model.model.language_model, before.model.language_model)


def test_steps_equal_a_plain_loop(run: Run) -> None:
    curve = LearningRateCurve(warmup_steps=2)
    model, plain = run.make_model(2), run.make_model(2).train()
    _, result = run(named_schedule("plain", 2), model, max_steps=5, curve=curve)
    optimizer = torch.optim.AdamW(plain.parameters(), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    batches = Batches(run.groups, run.collator, 3, 5, 42)
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * curve.factor(step, 5)
        loss = plain(**batches[step]).loss
        assert loss.item() == pytest.approx(result.losses[step], rel=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for trained, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-5)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step, before clipping could change them."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any, **kwargs: Any) -> None:
        self.kept = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("accepts", [True, False])
def test_accumulated_gradients_equal_one_batch(run: Run, accepts: bool) -> None:
    gradients, losses = [], []
    for batch, parts in ((8, 1), (2, 4)):
        model, kept = run.make_model(2), Gradients()
        model.accepts_loss_kwargs = accepts
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
        _, result = run(named_schedule("plain", 2), model, max_steps=1, max_grad_norm=0, callbacks=[kept], **changes)
        gradients.append(kept.kept)
        losses.append(result.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert gradients[0].keys() == gradients[1].keys()
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=0, atol=1e-6)
    batches = Batches(run.groups, run.collator, 2, 4, 42)
    assert len({int((batches[part]["labels"] != -100).sum()) for part in range(4)}) > 1


class Texts:
    """A collator of text for a decoder alone."""

    def draw(self, sample: Sample, epoch: int, index: int) -> Sample:
        return sample

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        ids = torch.arange(8).repeat(len(samples), 1)
        return {"input_ids": ids, "labels": ids}


def test_other_models_train_in_stages_without_compression(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, pad_token_id=0, **sizes))
    samples = [Sample((), ())]
    result = train(model, samples, Texts(), edge_schedule(["lm_head"]), arguments(tmp_path, max_steps=20))
    assert result.losses[-1] < result.losses[0]
    with pytest.raises(PoolingUnsupportedError):
        train(model, samples, Texts(), STAGED, arguments(tmp_path))


def test_what_cannot_be_trained_is_refused_at_once(run: Run, make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="stage 1: trainable: expected vision, connectors, language or the beg"):
        run(Schedule("none", (Stage(fraction=0.5), Stage(fraction=0.5, trainable=("nothing",)))))
    with pytest.raises(ScheduleError, match="not frozen, found none under vision"):
        run(Schedule("none", (Stage(fraction=0.5), Stage(fraction=0.5, trainable=("vision",)))), freeze=["vision"])
    deep = Stage(fraction=0.5, compression=CompressionSetting(layer=3, stride=2))
    with pytest.raises(ScheduleError, match="layer"):
        run(Schedule("deep", (Stage(fraction=0.5), deep)))
    with pytest.raises(ConfigError, match="at least one sample"):
        train(make_model(2), [], Texts(), named_schedule("plain", 2), arguments(tmp_path))
    with pytest.raises(ConfigError, match="auto_find_batch_size"):
        run(auto_find_batch_size=True)
    with pytest.raises(ConfigError, match="lr_scheduler_type"):
        run(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_samples=run.groups)
    broken = make_model(3)
    torch.nn.init.constant_(broken.model.multi_modal_projector.linear_1.weight, float("nan"))
    with pytest.raises(DivergedError, match="step 0"):
        run(named_schedule("plain", 3), broken)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("warmup_stable_decay", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806]),
    ],
)
def test_learning_rates(kind: Any, expected: list[float]) -> None:
    curve = LearningRateCurve(kind=kind, warmup_steps=2, decay_fraction=0.4)
    assert [curve.factor(step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("change", [{"kind": "linear"}, {"warmup_steps": -1}, {"decay_fraction": 0.0}])
def test_impossible_learning_rates_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        LearningRateCurve(**change)
