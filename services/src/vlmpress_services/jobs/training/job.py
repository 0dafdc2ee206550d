"""TrainJob: what can be refused before there is a job, and the work itself."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format

from vlmpress.artifact import COMPRESSION_WEIGHTS_FILE, Artifact, digest_bytes
from vlmpress.artifact.extensions import POLICY_FILE
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.folders import run_folder
from vlmpress_services.jobs.progress import Report
from vlmpress_services.jobs.requirements import check_ray, imported, most_processes
from vlmpress_services.losses import tail_mean
from vlmpress_services.producer import producer
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import MODEL_KINDS, check_kind
from vlmpress_services.workers.group import OnReport, WorkerGroup

if TYPE_CHECKING:
    from vlmpress_services.jobs.training.progress import StepReport
    from vlmpress_services.jobs.training.settings import RunPlan
    from vlmpress_services.jobs.training.work import Outcome

MAX_STAGES, MAX_SETTINGS_CHARS, MAX_SEED = 64, 65_536, 2**32 - 1
SCHEDULE, RECORD = "schedule.json", "training.json"


def check_train(job: pb.TrainJob, store: ArtifactStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: Names the field that cannot be right.
        NotFoundError: The model or the dataset is not in the store.
        ExtraMissingError: stagetrain is not installed.
    """
    model, dataset = store.resolve(job.model), store.resolve(job.dataset)
    check_kind("model", model, *MODEL_KINDS)
    check_kind("dataset", dataset, "dataset")
    for name, what in ((POLICY_FILE, "a token reducer's policy"), (COMPRESSION_WEIGHTS_FILE, "a learned compressor")):
        if (model.path / name).exists():
            raise InvalidRequestError(f"model: expected one without {what}, got {name}")
    for field, value, most in (
        ("num_workers", job.num_workers, most_processes()),
        ("seed", job.seed, MAX_SEED),
        ("settings_yaml: characters", len(job.settings_yaml), MAX_SETTINGS_CHARS),
        ("schedule: stages", len(job.schedule.stages), MAX_STAGES),
    ):
        if value > most:
            raise InvalidRequestError(f"{field}: expected at most {most}, got {value}")
    if job.num_workers > 1:
        check_ray("num_workers")
    with imported("train", "stagetrain"):
        from vlmpress_services.jobs.training.settings import check_plan, plan_of
    with TemporaryDirectory() as folder:
        check_plan(plan_of(job, model.path, dataset.path, Path(folder)))


def do_train(job: pb.TrainJob, store: ArtifactStore, report: Report) -> str:
    """Trains; gives the digest of the model."""
    with imported("train", "stagetrain"):
        from vlmpress_services.jobs.training.settings import plan_of
    model, dataset = store.verify(job.model), store.verify(job.dataset)
    with run_folder(store, "train", _run_digest(job, model, dataset)) as folder:
        plan = plan_of(job, model.path, dataset.path, folder)
        report(0.0, "loading")
        outcome = _run(plan, job.num_workers, _passing_on(report))
        return _publish(job, store, (model, dataset), folder, outcome)


def _run_digest(job: pb.TrainJob, model: Artifact, dataset: Artifact) -> str:
    """Equal for jobs that end with equal weights, whatever tags name their artifacts."""
    same = pb.TrainJob()
    same.CopyFrom(job)
    same.model, same.dataset = model.digest, dataset.digest
    same.num_workers = max(1, job.num_workers)
    # Another version may not go on from what an earlier one wrote.
    key = json_format.MessageToJson(same, sort_keys=True) + version("vlmpress-stagetrain")
    return digest_bytes(key.encode())


def _run(plan: "RunPlan", num_workers: int, on_progress: OnReport) -> "Outcome":
    from vlmpress_services.jobs.training.work import run_plan
    from vlmpress_services.workers.opening import open_runner

    # Checkpoints and workers' notes lie in one folder, so that one removal ends both.
    group = WorkerGroup(num_workers=max(1, num_workers), storage=plan.folder, name="ray")
    with open_runner("ray" if num_workers > 1 else "local", num_workers) as runner:
        outcome: Outcome = runner.train(run_plan, plan, group=group, on_progress=on_progress)
    return outcome


def _passing_on(report: Report) -> OnReport:
    def pass_on(state: "StepReport") -> None:
        message = (
            f"stage {state.stage + 1} of {state.num_stages}, step {state.step} of {state.num_steps},"
            f" loss {state.loss:.3f}, {state.tokens_per_second:.0f} tokens/s"
        )
        progress = pb.TrainProgress(
            stage=state.stage,
            num_stages=state.num_stages,
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
    store: ArtifactStore,
    parents: tuple[Artifact, Artifact],
    folder: Path,
    outcome: "Outcome",
) -> str:
    """Model and schedule as artifacts; what was needed to go on is removed."""
    from stagetrain.wire import schedule_to_proto
    from vlmpress_services.jobs.training.settings import TRAINED

    schedule = schedule_to_proto(outcome.schedule)
    model, dataset = parents
    with store.draft() as draft:
        text = json_format.MessageToJson(schedule, preserving_proto_field_name=True)
        (draft.path / SCHEDULE).write_text(f"{text}\n", encoding="utf-8")
        stages = draft.commit(schedule, producer=producer())
    speeds = {
        f"stage_{number}_tokens_per_second": speed
        for number, speed in enumerate(outcome.tokens_per_second, 1)
        if speed is not None
    }
    with store.draft() as draft:
        for path in (folder / TRAINED).iterdir():
            path.rename(draft.path / path.name)
        (draft.path / RECORD).write_text(f"{json.dumps(_record(job, outcome), indent=1)}\n", encoding="utf-8")
        trained = draft.commit(
            getattr(model.manifest, model.manifest.kind),
            producer=producer(),
            parents=[("model", model.digest), ("dataset", dataset.digest), ("schedule", stages.digest)],
            metrics={"final_loss_nats": tail_mean(outcome.losses), "num_steps": float(len(outcome.losses)), **speeds},
        )
    shutil.rmtree(folder, ignore_errors=True)
    return trained.digest


def _record(job: pb.TrainJob, outcome: "Outcome") -> dict[str, Any]:
    return {
        "job": json_format.MessageToDict(job, preserving_proto_field_name=True),
        "losses_nats": list(outcome.losses),
        "skipped": list(outcome.skipped),
    }
