"""TrainJob: what can be refused before there is a job, and the work itself."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from vlmpress.artifact import Artifact, digest_bytes
from vlmpress.artifact.extensions import POLICY_FILE
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress.stagetrain.v1 import stagetrain_pb2
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.job_progress import Report
from vlmpress_services.store import LocalStore
from vlmpress_services.workers.group import OnReport, WorkerGroup

if TYPE_CHECKING:
    from stagetrain import Schedule
    from vlmpress_services.train_progress import StepReport
    from vlmpress_services.train_settings import TrainSettings
    from vlmpress_services.train_work import Outcome, TrainPlan

MODEL_KINDS = ("model", "edge_model")
DISTRIBUTION = "vlmpress-services"
MAX_WORKERS, MAX_STAGES, MAX_SETTINGS_CHARS, MAX_SEED = 256, 64, 65_536, 2**32 - 1
SCHEDULE, RECORD = "schedule.json", "training.json"
LEARNED_COMPRESSOR = "visual_compression.safetensors"


def check_train(job: pb.TrainJob, store: LocalStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: Names the field that cannot be right.
        NotFoundError: The model or the dataset is not in the store.
        ExtraMissingError: stagetrain is not installed.
    """
    model, dataset = store.resolve(job.model), store.resolve(job.dataset)
    _check_kind("model", model, *MODEL_KINDS)
    _check_kind("dataset", dataset, "dataset")
    for name, what in ((POLICY_FILE, "a token reducer's policy"), (LEARNED_COMPRESSOR, "a learned compressor")):
        if (model.path / name).exists():
            raise InvalidRequestError(f"model: expected one without {what}, got {name}")
    for field, value, most in (
        ("num_workers", job.num_workers, MAX_WORKERS),
        ("seed", job.seed, MAX_SEED),
        ("settings_yaml: characters", len(job.settings_yaml), MAX_SETTINGS_CHARS),
        ("schedule: stages", len(job.schedule.stages), MAX_STAGES),
    ):
        if value > most:
            raise InvalidRequestError(f"{field}: expected at most {most}, got {value}")
    _prepare(job, model)


def do_train(job: pb.TrainJob, store: LocalStore, report: Report) -> str:
    """Trains; gives the digest of the model."""
    model, dataset = store.verify(job.model), store.verify(job.dataset)
    schedule, settings = _prepare(job, model)
    from stagetrain.wire import schedule_to_proto
    from vlmpress_services.train_work import TrainPlan

    message = schedule_to_proto(schedule)
    folder = store.root / "runs" / f"train-{_run_digest(job, model, dataset, message)[:32]}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = TrainPlan(
        model=model.path, dataset=dataset.path, folder=folder, schedule=schedule, settings=settings, seed=job.seed
    )
    report(0.0, "loading")
    outcome = _run(plan, job.num_workers, _passing_on(report, len(schedule.stages)))
    return _publish(job, store, (model, dataset), message, folder, outcome)


def _prepare(job: pb.TrainJob, model: Artifact) -> tuple["Schedule", "TrainSettings"]:
    try:
        from stagetrain import StageTrainError, named_schedule
        from stagetrain.wire import schedule_from_proto
        from vlmpress_services.train_settings import parse_settings, training_arguments
    except ImportError as error:
        raise ExtraMissingError(
            f"train: package not installed ({error}); pip install 'vlmpress-services[stagetrain]' on the server"
        ) from error
    field = job.WhichOneof("stages")
    if field is None:
        raise InvalidRequestError("stages: expected scheme or schedule, got none")
    num_layers = _num_layers(model.path)
    try:
        schedule = named_schedule(job.scheme, num_layers) if field == "scheme" else schedule_from_proto(job.schedule)
    except StageTrainError as error:
        raise InvalidRequestError(f"{field}: {error}") from error
    for number, stage in enumerate(schedule.stages):
        if stage.compression is not None and stage.compression.layer >= num_layers:
            raise InvalidRequestError(
                f"{field}: stage {number}: layer: expected below {num_layers}, got {stage.compression.layer}"
            )
    settings = parse_settings(job.settings_yaml)
    training_arguments(settings, str(model.path), job.seed)
    return schedule, settings


def _num_layers(directory: Path) -> int:
    from transformers import AutoConfig

    from vlmpress.artifact import import_model_code

    import_model_code(directory)
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True)
        return int(config.get_text_config().num_hidden_layers)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidRequestError(f"model: expected one with a language model, got: {error}") from error


def _run_digest(job: pb.TrainJob, model: Artifact, dataset: Artifact, schedule: stagetrain_pb2.StageSchedule) -> str:
    """Equal for jobs that must end with equal weights, whatever tags name their artifacts."""
    key = {
        "model": model.digest,
        "dataset": dataset.digest,
        "schedule": json_format.MessageToDict(schedule),
        "settings": job.settings_yaml,
        "num_workers": max(1, job.num_workers),
        "seed": job.seed,
    }
    return digest_bytes(json.dumps(key, sort_keys=True).encode())


def _run(plan: "TrainPlan", num_workers: int, on_progress: OnReport) -> "Outcome":
    import torch

    from vlmpress_services.train_work import run_plan
    from vlmpress_services.workers.opening import open_runner

    alone = num_workers < 2
    # Checkpoints and workers' notes lie in one folder, so that one removal ends both.
    group = WorkerGroup(
        num_workers=max(1, num_workers),
        storage=plan.folder,
        name="ray",
        use_gpu=not alone and torch.cuda.device_count() >= num_workers,
    )
    with open_runner("local" if alone else "ray") as runner:
        outcome: Outcome = runner.train(run_plan, plan, group=group, on_progress=on_progress)
    return outcome


def _passing_on(report: Report, num_stages: int) -> OnReport:
    def pass_on(state: "StepReport") -> None:
        message = (
            f"stage {state.stage + 1} of {num_stages}, step {state.step} of {state.num_steps}, loss {state.loss:.3f},"
            f" {state.tokens_per_second:.0f} tokens/s"
        )
        progress = pb.TrainProgress(
            stage=state.stage,
            num_stages=num_stages,
            step=state.step,
            num_steps=state.num_steps,
            loss=state.loss,
            tokens_per_second=state.tokens_per_second,
            seconds_left=state.seconds_left,
        )
        report(state.step / state.num_steps, message, progress)

    return pass_on


def _publish(
    job: pb.TrainJob,
    store: LocalStore,
    parents: tuple[Artifact, Artifact],
    schedule: stagetrain_pb2.StageSchedule,
    folder: Path,
    outcome: "Outcome",
) -> str:
    """Model and schedule as artifacts; what was needed to go on is removed."""
    model, dataset = parents
    producer = (DISTRIBUTION, version(DISTRIBUTION))
    with store.draft() as draft:
        text = json_format.MessageToJson(schedule, preserving_proto_field_name=True)
        (draft.path / SCHEDULE).write_text(f"{text}\n", encoding="utf-8")
        stages = draft.commit(schedule, producer=producer)
    speeds = {
        f"stage_{number}_tokens_per_second": speed
        for number, speed in enumerate(outcome.tokens_per_second, 1)
        if speed is not None
    }
    with store.draft() as draft:
        for path in (folder / "trained").iterdir():
            path.rename(draft.path / path.name)
        (draft.path / RECORD).write_text(f"{json.dumps(_record(job, outcome), indent=1)}\n", encoding="utf-8")
        trained = draft.commit(
            getattr(model.manifest, model.manifest.kind),
            producer=producer,
            parents=[("model", model.digest), ("dataset", dataset.digest), ("schedule", stages.digest)],
            metrics={"final_loss_nats": outcome.final_loss, "num_steps": float(len(outcome.losses)), **speeds},
        )
    shutil.rmtree(folder, ignore_errors=True)
    return trained.digest


def _record(job: pb.TrainJob, outcome: "Outcome") -> dict[str, Any]:
    return {
        "job": json_format.MessageToDict(job, preserving_proto_field_name=True),
        "losses_nats": list(outcome.losses),
        "skipped": list(outcome.skipped),
    }


def _check_kind(field: str, artifact: Artifact, *kinds: str) -> None:
    if artifact.manifest.kind not in kinds:
        raise InvalidRequestError(f"{field}: expected a kind of {', '.join(kinds)}, got {artifact.manifest.kind}")
