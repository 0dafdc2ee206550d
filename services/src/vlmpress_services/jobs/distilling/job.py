"""DistillJob: what can be refused before there is a job, and the work itself."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from google.protobuf import json_format

from vlmpress.artifact import COMPRESSION_FILE, POLICY_FILE, Artifact, digest_bytes
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.folders import run_folder
from vlmpress_services.jobs.progress import Report
from vlmpress_services.jobs.requirements import check_ray, imported, most_processes
from vlmpress_services.losses import tail_mean
from vlmpress_services.producer import producer
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import MODEL_KINDS, check_kind
from vlmpress_services.workers.group import OnReport, TeacherGroup, WorkerGroup

if TYPE_CHECKING:
    from vlmpress_services.jobs.distilling.progress import StepReport
    from vlmpress_services.jobs.distilling.settings import DistillPlan
    from vlmpress_services.jobs.distilling.work import Outcome
    from vlmpress_services.workers.teachers import TeacherPool

MAX_SETTINGS_CHARS, MAX_SEED = 65_536, 2**32 - 1
# What verbdistill would run without, and not write again.
NOT_TRAINED = {POLICY_FILE: "a token reducer's policy", COMPRESSION_FILE: "a compression"}
RECORD = "distilling.json"


def check_distill(job: pb.DistillJob, store: ArtifactStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: Names the field that cannot be right.
        NotFoundError: A model, the dataset or the verbalizers are not in the store.
        ExtraMissingError: verbdistill or Ray is not installed.
        verbdistill.VerbDistillError: The models cannot be a pair.
    """
    for field, value, most in (
        ("num_workers", job.num_workers, most_processes()),
        ("num_teachers", job.num_teachers, most_processes()),
        ("seed", job.seed, MAX_SEED),
        ("settings_yaml: characters", len(job.settings_yaml), MAX_SETTINGS_CHARS),
    ):
        if value > most:
            raise InvalidRequestError(f"{field}: expected at most {most}, got {value}")
    artifacts = _resolved(job, store)
    if _on_ray(job):
        check_ray("num_workers, num_teachers")
    with imported("distill", "verbdistill"):
        from vlmpress_services.jobs.distilling.pairs import check_pair
        from vlmpress_services.jobs.distilling.settings import config_of
    with TemporaryDirectory() as folder:
        plan = _plan(job, artifacts, Path(folder))
        config = config_of(plan)
        if config.batch_size < job.num_workers:
            raise InvalidRequestError(
                f"num_workers: expected at most the batch size {config.batch_size}, got {job.num_workers}"
            )
        check_pair(config)


def do_distill(job: pb.DistillJob, store: ArtifactStore, report: Report) -> str:
    """Distils; gives the digest of the model."""
    artifacts = {role: store.verify(artifact.digest) for role, artifact in _resolved(job, store).items()}
    with run_folder(store, "distill", _run_digest(job, artifacts)) as folder:
        with imported("distill", "verbdistill"):
            plan = _plan(job, artifacts, folder)
        report(0.0, "loading")
        outcome = _run(plan, job, _passing_on(report))
        return _publish(job, store, artifacts, plan, outcome)


def _resolved(job: pb.DistillJob, store: ArtifactStore) -> dict[str, Artifact]:
    kinds = {"teacher": MODEL_KINDS, "student": MODEL_KINDS, "dataset": ("dataset",)}
    if job.teacher_verbalizers:
        kinds["teacher_verbalizers"] = ("verbalizers",)
    found = {}
    for field, wanted in kinds.items():
        found[field] = store.resolve(getattr(job, field))
        check_kind(field, found[field], *wanted)
    for field in ("teacher", "student"):
        for name, what in NOT_TRAINED.items():
            if (found[field].path / name).exists():
                raise InvalidRequestError(f"{field}: expected one without {what}, got {name}")
    return found


def _plan(job: pb.DistillJob, artifacts: dict[str, Artifact], folder: Path) -> "DistillPlan":
    from vlmpress_services.jobs.distilling.settings import plan_of

    verbalizers = artifacts.get("teacher_verbalizers")
    return plan_of(
        job,
        teacher=artifacts["teacher"].path,
        student=artifacts["student"].path,
        dataset=artifacts["dataset"].path,
        folder=folder,
        verbalizers=None if verbalizers is None else verbalizers.path,
    )


def _on_ray(job: pb.DistillJob) -> bool:
    return job.num_workers > 1 or job.num_teachers > 0


def _run_digest(job: pb.DistillJob, artifacts: dict[str, Artifact]) -> str:
    """Equal for jobs that end with equal weights, whatever tags name their artifacts and wherever the teacher is."""
    same = pb.DistillJob()
    same.CopyFrom(job)
    for field, artifact in artifacts.items():
        setattr(same, field, artifact.digest)
    same.num_workers, same.num_teachers = max(1, job.num_workers), 0
    # Another version may not go on from what an earlier one wrote.
    key = json_format.MessageToJson(same, sort_keys=True) + version("vlmpress-verbdistill")
    return digest_bytes(key.encode())


def _run(plan: "DistillPlan", job: pb.DistillJob, on_progress: OnReport) -> "Outcome":
    from verbdistill.steps.teaching import TAUGHT
    from vlmpress_services.jobs.distilling.settings import config_of
    from vlmpress_services.jobs.distilling.work import distil, verbalize_teacher, with_teacher_losses
    from vlmpress_services.workers.opening import open_runner

    # Checkpoints and workers' notes lie in one folder, so that one removal ends both.
    students = WorkerGroup(num_workers=max(1, job.num_workers), storage=plan.folder, name="ray")
    teachers = TeacherGroup(num_teachers=job.num_teachers) if job.num_teachers else None
    num_cpus = students.num_workers + (0 if teachers is None else math.ceil(teachers.num_cpus))
    losses: list[list[float]] = []
    with open_runner("ray" if _on_ray(job) else "local", num_cpus) as runner:
        if plan.verbalizers is None and config_of(plan).distill.intermediate in TAUGHT:
            alone = replace(students, name="ray-verbalization")
            losses = runner.train(verbalize_teacher, plan, group=alone, on_progress=on_progress)
        with _teachers(plan, teachers, students) as (pool, placed):
            outcome: Outcome = runner.train(distil, plan, pool, group=placed, on_progress=on_progress)
    return with_teacher_losses(outcome, losses)


@contextmanager
def _teachers(
    plan: "DistillPlan", teachers: TeacherGroup | None, students: WorkerGroup
) -> "Iterator[tuple[TeacherPool | None, WorkerGroup]]":
    """Running teachers, and the workers as they find room beside them."""
    if teachers is None:
        yield None, students
        return
    from vlmpress_services.jobs.distilling.work import OpenTeacher
    from vlmpress_services.workers.teachers import placed, teacher_pool

    teachers, students = placed(teachers, students)
    with teacher_pool(OpenTeacher, plan, group=teachers) as pool:
        yield pool, students


def _passing_on(report: Report) -> OnReport:
    def pass_on(state: "StepReport") -> None:
        message = (
            f"{state.phase}, step {state.phase_step} of {state.num_phase_steps}, loss {state.loss:.3f}"
            f" ({state.step} of {state.num_steps} steps)"
        )
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        report(state.step / state.num_steps, message, pb.DistillProgress(**fields))

    return pass_on


def _publish(
    job: pb.DistillJob, store: ArtifactStore, artifacts: dict[str, Artifact], plan: "DistillPlan", outcome: "Outcome"
) -> str:
    """Model, report and verbalizers as artifacts; what was needed to go on is removed."""
    from verbdistill.seeing.report import write_report
    from verbdistill.wire import distillation_to_proto
    from vlmpress_services.jobs.distilling.settings import DISTILLED, VERBALIZERS

    parents = {role: artifact.digest for role, artifact in artifacts.items()}
    made = plan.folder / VERBALIZERS
    for path in sorted(made.iterdir()) if made.is_dir() else ():
        parents[f"{path.name}_verbalizers"] = store.add(path).digest
    metrics = {f"final_{name}_loss": tail_mean(losses) for name, losses in outcome.report.losses.items() if losses}
    with store.draft() as draft:
        write_report(draft.path, outcome.report)
        text = json.dumps(json_format.MessageToDict(job, preserving_proto_field_name=True), indent=1)
        (draft.path / RECORD).write_text(f"{text}\n", encoding="utf-8")
        distillation = draft.commit(
            distillation_to_proto(outcome.spec),
            producer=producer(),
            parents=list(parents.items()),
            metrics={**metrics, "waited_for_teacher_s": outcome.waited_s},
        )
    student = artifacts["student"].manifest
    with store.draft() as draft:
        for path in (plan.folder / DISTILLED).iterdir():
            path.rename(draft.path / path.name)
        model = draft.commit(
            getattr(student, student.kind),
            producer=producer(),
            parents=[("student", parents["student"]), ("distillation", distillation.digest)],
            metrics=metrics,
        )
    shutil.rmtree(plan.folder, ignore_errors=True)
    return model.digest
