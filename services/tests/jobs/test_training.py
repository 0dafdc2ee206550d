"""TrainJob in this process: what the worker does, and what is refused before there is a worker."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stagetrain import CompressionSetting, Schedule, Stage, StageTrainError, always_compressed
from stagetrain.wire import schedule_from_proto, schedule_to_proto
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError, NotFoundError, ServicesError
from vlmpress_services.jobs.training.settings import config_of, plan_of
from vlmpress_services.jobs.work import check_spec, do_work

SETTINGS = "training: {max_steps: 6, learning_rate: 0.01, per_device_train_batch_size: 2, save_steps: 2}\n"
STAGED = Schedule(
    "custom",
    (
        Stage(fraction=0.5, compression=CompressionSetting(layer=1, stride=4), trainable=("connectors",)),
        Stage(fraction=0.5),
    ),
)


def spec(**fields: Any) -> pb.JobSpec:
    return pb.JobSpec(train=pb.TrainJob(**({"settings_yaml": SETTINGS} | fields)))


class Reports(list[tuple[float, str, Any]]):
    """Keeps every report; ends the run at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self._stop_at = stop_at

    def __call__(self, share: float, note: str, train: Any = None) -> None:
        self.append((share, note, train))
        if train is not None and train.step == self._stop_at:
            raise InterruptedError


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_a_model_is_trained_in_stages_and_published(store: Any, add_model: Any, add_dataset: Any) -> None:
    model, dataset = add_model(), add_dataset()
    store.tag("start", model.digest)
    job = spec(model="start", dataset=dataset.digest, schedule=schedule_to_proto(STAGED))
    check_spec(job, store)
    reports = Reports()
    made = store.verify(do_work(job, store, reports))
    assert made.manifest.kind == "model"
    assert made.manifest.model == model.manifest.model
    assert [parent.role for parent in made.manifest.parents] == ["model", "dataset", "schedule"]
    assert made.manifest.parents[0].digest == model.digest
    schedule = store.verify(made.manifest.parents[2].digest)
    assert schedule_from_proto(schedule.manifest.stage_schedule) == STAGED
    metrics = made.manifest.metrics
    assert metrics["num_steps"] == 6
    assert {"final_loss_nats", "stage_1_tokens_per_second", "stage_2_tokens_per_second"} < set(metrics)
    record = json.loads((made.path / "training.json").read_text(encoding="utf-8"))
    assert record["job"]["model"] == "start"
    assert len(record["losses_nats"]) == 6
    assert record["losses_nats"][-1] == pytest.approx(metrics["final_loss_nats"])
    steps = [train for _, _, train in reports if train is not None]
    assert [(train.stage, train.num_stages, train.step, train.num_steps) for train in steps] == [
        (0 if step < 4 else 1, 2, step, 6) for step in range(1, 7)
    ]
    assert [train.loss for train in steps] == pytest.approx(record["losses_nats"], abs=1e-4)
    assert all(train.tokens_per_second > 0 for train in steps)
    assert not steps[0].HasField("seconds_left")
    assert steps[-1].seconds_left == 0
    assert reports[-1][0] == 1
    assert reports[-1][1].startswith("stage 2 of 2, step 6 of 6, loss ")
    before, after = weights(model.path), weights(made.path)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not list((store.root / "runs").iterdir())
    assert not list((store.root / "incoming").iterdir())


def test_two_jobs_that_ask_the_same_at_once_both_end_well(store: Any, add_model: Any, add_dataset: Any) -> None:
    job = spec(model=add_model().digest, dataset=add_dataset().digest, scheme="plain")
    with ThreadPoolExecutor(2) as pool:
        made = [each.result() for each in [pool.submit(do_work, job, store, Reports()) for _ in range(2)]]
    one, other = (weights(store.verify(digest).path) for digest in made)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((store.root / "runs").iterdir())


def test_a_job_that_was_ended_goes_on_when_it_is_made_again(store: Any, add_model: Any, add_dataset: Any) -> None:
    job = spec(model=add_model().digest, dataset=add_dataset().digest, scheme="three_stage_deeper")
    whole = store.verify(do_work(job, store, Reports()))
    with pytest.raises(InterruptedError):
        do_work(job, store, Reports(stop_at=5))
    assert len(list((store.root / "runs").iterdir())) == 1
    reports = Reports()
    made = store.verify(do_work(job, store, reports))
    assert [train.step for _, _, train in reports if train is not None] == [5, 6]
    before, after = weights(whole.path), weights(made.path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Another seed is another run.
    changed = pb.JobSpec()
    changed.CopyFrom(job)
    changed.train.seed = 1
    other = store.verify(do_work(changed, store, Reports()))
    assert any(not torch.equal(before[name], value) for name, value in weights(other.path).items())


def test_an_always_compressed_model_keeps_its_compression(store: Any, add_model: Any, add_dataset: Any) -> None:
    schedule = always_compressed(CompressionSetting(layer=1, stride=4))
    job = spec(model=add_model().digest, dataset=add_dataset().digest, schedule=schedule_to_proto(schedule))
    made = store.verify(do_work(job, store, Reports()))
    kept = json.loads((made.path / "visual_compression.json").read_text(encoding="utf-8"))
    assert (kept["layer"], kept["stride"], kept["compressor"]) == (1, 4, "average")


def test_what_cannot_become_a_job_is_refused(store: Any, add_model: Any, add_dataset: Any, add_log: Any) -> None:
    model, dataset, log = add_model().digest, add_dataset().digest, add_log().digest
    good = {"model": model, "dataset": dataset, "scheme": "two_stage"}
    deep = schedule_to_proto(always_compressed(CompressionSetting(layer=2, stride=2)))
    half = schedule_to_proto(STAGED)
    half.stages[0].fraction = 0.1
    many = schedule_to_proto(STAGED)
    many.stages.extend([many.stages[0]] * 100)
    for change, text in (
        ({"model": dataset}, "^model: expected a kind of model, edge_model, got dataset"),
        ({"dataset": log}, "^dataset: expected a kind of dataset, got log"),
        ({"model": "no tag!"}, "expected a digest"),
        ({"scheme": None}, "^stages: expected scheme or schedule, got none"),
        ({"scheme": "wider"}, "^scheme: expected one of plain, .*got 'wider'"),
        ({"schedule": deep}, r"^schedule\.stages\.0\.layer: expected a layer below the decoder's 2, got 2"),
        ({"schedule": half}, "^schedule: .*fractions that sum to 1"),
        ({"schedule": many}, "^schedule: stages: expected at most 64, got 102"),
        ({"num_workers": 1000}, r"^num_workers: expected at most \d+, got 1000"),
        ({"seed": 2**40}, "^seed: expected at most"),
        ({"settings_yaml": "freeze: [vision]\ntraining: ["}, "^settings_yaml:2: expected YAML"),
        ({"settings_yaml": "- a"}, "^settings_yaml:1: expected a mapping"),
        (
            {"settings_yaml": "freeze: []\nmodel: /etc"},
            "^settings_yaml:2: model: expected some of training, collator, freeze, got 'model'",
        ),
        ({"settings_yaml": "training:\n  output_dir: /etc"}, r"^settings_yaml:2: training\.output_dir: expected some"),
        ({"settings_yaml": "training:\n  deepspeed: a.json"}, r"^settings_yaml:2: training\.deepspeed: expected some"),
        ({"settings_yaml": "training: {learning_rat: 1}"}, r"^settings_yaml:1: training\.learning_rat: "),
        ({"settings_yaml": "training: {learning_rate: high}"}, r"learning_rate: expected a number, got 'high'"),
        ({"settings_yaml": "training: {max_steps: 1.5}"}, r"max_steps: expected a whole number, got 1\.5"),
        ({"settings_yaml": "training: 3"}, "^settings_yaml:1: training: expected a mapping"),
        ({"settings_yaml": "collator: {seed: 1}"}, r"^settings_yaml:1: collator\.seed: .*got the key 'seed'"),
        ({"settings_yaml": "freeze: vision"}, "^settings_yaml:1: freeze: expected a list of text"),
        ({"settings_yaml": "#" * 70_000}, "^settings_yaml: characters: expected at most 65536"),
    ):
        fields = {**good, **change}
        if "schedule" in change:
            del fields["scheme"]
        with pytest.raises(InvalidRequestError, match=text):
            check_spec(spec(**fields), store)
    for change in ({"model": "none"}, {"dataset": "0" * 64}):
        with pytest.raises(NotFoundError):
            check_spec(spec(**{**good, **change}), store)
    check_spec(spec(**good), store)


@pytest.mark.parametrize("name", ["reduction_policy.json", "visual_compression.safetensors"])
def test_a_model_that_would_lose_what_it_has_is_refused(
    store: Any, add_model: Any, add_dataset: Any, tmp_path: Path, name: str
) -> None:
    from vlmpress.artifact.v1 import artifact_pb2

    with store.draft() as draft:
        (draft.path / "config.json").write_text("{}")
        (draft.path / name).write_text("{}")
        model = draft.commit(artifact_pb2.Model(model_type="llava"), producer=("test", "0"))
    with pytest.raises(InvalidRequestError, match=f"^model: .*{name}"):
        check_spec(spec(model=model.digest, dataset=add_dataset().digest, scheme="plain"), store)


def test_a_missing_extra_is_named(
    store: Any, add_model: Any, add_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vlmpress_services.jobs.training.settings", None)
    with pytest.raises(ExtraMissingError, match=r"train: package not installed .*vlmpress-services\[stagetrain\]"):
        check_spec(spec(model=add_model().digest, dataset=add_dataset().digest, scheme="plain"), store)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("training: {optim: nope}", "settings that go together, got nope is not a valid OptimizerNames"),
        ("training: {max_steps: 2}\ncollator: {max_length: 3}", "expected at most 3 tokens"),
        ("training: {max_steps: 2}\nfreeze: [nothing]", "settings_yaml:2: freeze: "),
        ("training: {max_steps: 2, fsdp: full_shard}", "fsdp: expected a GPU for each worker, got none"),
    ],
)
def test_what_only_the_model_and_the_data_show_fails_the_job_with_one_line(
    store: Any, add_model: Any, add_dataset: Any, settings: str, text: str
) -> None:
    job = spec(model=add_model().digest, dataset=add_dataset().digest, scheme="plain", settings_yaml=settings)
    check_spec(job, store)
    with pytest.raises(Exception, match=text) as caught:
        do_work(job, store, Reports())
    assert isinstance(caught.value, ServicesError | StageTrainError)


def test_ray_is_asked_for_before_there_is_a_job(
    store: Any, add_model: Any, add_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spec(model=add_model().digest, dataset=add_dataset().digest, scheme="plain", num_workers=2)
    check_spec(job, store)
    monkeypatch.setattr("vlmpress_services.jobs.requirements.find_spec", lambda _: None)
    with pytest.raises(ExtraMissingError, match=r"num_workers: Ray not installed; .*vlmpress-services\[ray\]"):
        check_spec(job, store)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activations_may_be_made_twice_under_either_name(
    store: Any, add_model: Any, add_dataset: Any, tmp_path: Path, name: str
) -> None:
    settings = f"training: {{{name}: true}}"
    model, dataset = add_model(), add_dataset()
    job = spec(model=model.digest, dataset=dataset.digest, scheme="plain", settings_yaml=settings)
    check_spec(job, store)
    plan = plan_of(job.train, model.path, dataset.path, tmp_path)
    assert config_of(plan).training_arguments().activation_checkpointing
