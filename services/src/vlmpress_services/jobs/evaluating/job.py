"""EvaluateJob: what can be refused before there is a job, and the work itself."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vlmpress.artifact import digest_bytes
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.jobs.progress import OnProgress
from vlmpress_services.store.interface import ArtifactStore
from vlmpress_services.workers.group import TaskResources

if TYPE_CHECKING:
    from vlmpress_services.evaluating.shards import Answered, Shard

MODEL_KINDS = ("model", "edge_model", "quantized_model")
DISTRIBUTION = "vlmpress-services"
DEFAULT_SHARD_QUESTIONS, DEFAULT_NEW_TOKENS = 125, 16
MAX_SHARD_QUESTIONS, MAX_NEW_TOKENS, MAX_WORKERS, MAX_CORES = 10_000, 4096, 1024, 1024


def check_evaluate(job: pb.EvaluateJob, store: ArtifactStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: A field cannot be right.
        NotFoundError: The model or the dataset is not in the store.
        ExtraMissingError: Several workers are asked for and Ray is not installed.
    """
    for field, ref, kinds in (("model", job.model, MODEL_KINDS), ("dataset", job.dataset, ("dataset",))):
        kind = store.find(ref).manifest.kind
        if kind not in kinds:
            raise InvalidRequestError(f"{field}: expected a kind of {', '.join(kinds)}, got {kind}")
    for field, value, most in (
        ("max_new_tokens", job.max_new_tokens, MAX_NEW_TOKENS),
        ("shard_questions", job.shard_questions, MAX_SHARD_QUESTIONS),
        ("num_workers", job.num_workers, MAX_WORKERS),
        ("cpus_per_worker", job.cpus_per_worker, MAX_CORES),
        ("gpus_per_worker", job.gpus_per_worker, MAX_CORES),
    ):
        if not (math.isfinite(value) and 0 <= value <= most):
            raise InvalidRequestError(f"{field}: expected 0 to {most}, got {value:g}")
    if job.num_workers > 1 and find_spec("ray") is None:
        raise ExtraMissingError(
            f"num_workers: expected at most 1 without Ray, got {job.num_workers};"
            " pip install 'vlmpress-services[ray]' on the server"
        )


def do_evaluate(job: pb.EvaluateJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Evaluates; gives the digest of the evaluation."""
    with _edgevlm_installed():
        from vlmpress_services.evaluating.measures import evaluation_spec, model_metrics, scores_of
        from vlmpress_services.evaluating.predictions import write_predictions
        from vlmpress_services.evaluating.shards import shards_of
    from vlmpress_services.datasets import read_evaluation

    model, dataset = store.verify(job.model), store.verify(job.dataset)
    shards = shards_of(
        model.digest,
        dataset.digest,
        len(read_evaluation(dataset.path)),
        job.shard_questions or DEFAULT_SHARD_QUESTIONS,
        job.max_new_tokens or DEFAULT_NEW_TOKENS,
    )
    # Equal for jobs that ask the same, whatever their workers.
    folder = store.root / "runs" / f"evaluate-{digest_bytes(''.join(one.digest for one in shards).encode())[:32]}"
    answered = _answer(job, store, shards, folder, on_progress)
    with store.draft() as draft:
        write_predictions(draft.path, answered)
        made = draft.commit(
            evaluation_spec(model, dataset, scores_of(answered)),
            producer=(DISTRIBUTION, version(DISTRIBUTION)),
            parents=[("model", model.digest), ("dataset", dataset.digest)],
            metrics=model_metrics(model, dataset, answered),
        )
    shutil.rmtree(folder, ignore_errors=True)
    return made.digest


def _answer(
    job: pb.EvaluateJob, store: ArtifactStore, shards: list["Shard"], folder: Path, on_progress: OnProgress
) -> list["Answered"]:
    from vlmpress_services.evaluating.spreading import answer_shards
    from vlmpress_services.workers.opening import open_runner

    num_workers = max(1, job.num_workers)
    resources = TaskResources(cpus=job.cpus_per_worker or 1, gpus=job.gpus_per_worker, max_running=num_workers)

    def report(done: int, total: int, note: str) -> None:
        on_progress(done / total, f"{done} of {total} shards: {note}" if note else f"{done} of {total} shards")

    # Without a cluster of its own, the server starts one with a worker's cores for each worker.
    cores = math.ceil(num_workers * resources.cpus)
    with open_runner("ray" if num_workers > 1 else "local", cores) as runner:
        return answer_shards(str(store.root), shards, folder, runner, resources, report)


@contextmanager
def _edgevlm_installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ExtraMissingError(
            f"evaluate: package not installed ({error}); pip install 'vlmpress-services[edgevlm]' on the server"
        ) from error
