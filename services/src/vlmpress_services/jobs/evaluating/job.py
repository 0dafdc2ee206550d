"""EvaluateJob: what can be refused before there is a job, and the work itself."""

import math
import shutil

from vlmpress.artifact import digest_bytes
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.folders import run_folder
from vlmpress_services.jobs.progress import OnProgress
from vlmpress_services.jobs.requirements import check_ray, imported
from vlmpress_services.producer import producer
from vlmpress_services.serving.model_host import LOADABLE_KINDS
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.store.kinds import check_kind
from vlmpress_services.workers.group import TaskResources

DEFAULT_SHARD_QUESTIONS, DEFAULT_NEW_TOKENS = 125, 16
MAX_SHARD_QUESTIONS, MAX_NEW_TOKENS, MAX_WORKERS, MAX_CORES = 10_000, 4096, 1024, 1024


def check_evaluate(job: pb.EvaluateJob, store: ArtifactStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: A field cannot be right.
        NotFoundError: The model or the dataset is not in the store.
        ExtraMissingError: Several workers are asked for and Ray is not installed.
    """
    check_kind("model", store.find(job.model), *LOADABLE_KINDS)
    check_kind("dataset", store.find(job.dataset), "dataset")
    for field, value, most in (
        ("max_new_tokens", job.max_new_tokens, MAX_NEW_TOKENS),
        ("shard_questions", job.shard_questions, MAX_SHARD_QUESTIONS),
        ("num_workers", job.num_workers, MAX_WORKERS),
        ("cpus_per_worker", job.cpus_per_worker, MAX_CORES),
        ("gpus_per_worker", job.gpus_per_worker, MAX_CORES),
    ):
        if not (math.isfinite(value) and 0 <= value <= most):
            raise InvalidRequestError(f"{field}: expected 0 to {most}, got {value:g}")
    if job.num_workers > 1:
        check_ray("num_workers")


def do_evaluate(job: pb.EvaluateJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Evaluates; gives the digest of the evaluation."""
    with imported("evaluate", "edgevlm"):
        from vlmpress_services.evaluating.evaluation import Questions, evaluate
    from vlmpress_services.workers.opening import open_runner

    questions = Questions(
        model=store.verify(job.model),
        dataset=store.verify(job.dataset),
        shard_questions=job.shard_questions or DEFAULT_SHARD_QUESTIONS,
        max_new_tokens=job.max_new_tokens or DEFAULT_NEW_TOKENS,
    )
    num_workers = max(1, job.num_workers)
    resources = TaskResources(cpus=job.cpus_per_worker or 1, gpus=job.gpus_per_worker, max_running=num_workers)

    def report(done: int, total: int, note: str) -> None:
        on_progress(done / total, f"{done} of {total} shards: {note}" if note else f"{done} of {total} shards")

    # Equal for jobs that ask the same, whatever their workers.
    numbers = f"{questions.shard_questions} {questions.max_new_tokens}"
    asked = f"{questions.model.digest} {questions.dataset.digest} {numbers}"
    # Without a cluster of its own, the server starts one with a worker's cores for each worker.
    cores = math.ceil(num_workers * resources.cpus)
    with (
        run_folder(store, "evaluate", digest_bytes(asked.encode())) as folder,
        open_runner("ray" if num_workers > 1 else "local", cores) as runner,
        store.draft() as draft,
    ):
        found = evaluate(questions, str(store.root), folder, draft.path, runner, resources, report)
        made = draft.commit(
            found.spec,
            producer=producer(),
            parents=[("model", questions.model.digest), ("dataset", questions.dataset.digest)],
            metrics=found.metrics,
        )
        shutil.rmtree(folder, ignore_errors=True)
    return made.digest
