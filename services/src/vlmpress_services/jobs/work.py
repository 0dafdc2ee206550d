"""What each kind of job does."""

from collections.abc import Callable
from typing import Any

from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.distilling.job import check_distill, do_distill
from vlmpress_services.jobs.evaluating.job import check_evaluate, do_evaluate
from vlmpress_services.jobs.pipelines import check_yaml, do_pareto, do_pipeline
from vlmpress_services.jobs.progress import Report
from vlmpress_services.jobs.quantizing.job import check_pack, check_sweep, do_pack, do_sweep
from vlmpress_services.jobs.training.job import check_train, do_train
from vlmpress_services.store.interface import ArtifactStore


def check_spec(spec: pb.JobSpec, store: ArtifactStore) -> None:
    """Refuses what cannot become a job.

    Raises:
        InvalidRequestError: No work is set, or one of its fields cannot be right.
        NotFoundError: The model or the dataset is not in the store.
    """
    kind = spec.WhichOneof("work")
    if kind is None:
        raise InvalidRequestError("spec: expected one kind of work, got none")
    check, _ = _KINDS[kind]
    check(getattr(spec, kind), store)


def do_work(spec: pb.JobSpec, store: ArtifactStore, report: Report) -> str:
    """Does a job's work and gives the digest of its result."""
    kind = spec.WhichOneof("work")
    assert kind is not None, "checked when the job was created"
    _, do = _KINDS[kind]
    return do(getattr(spec, kind), store, report)


_KINDS: dict[str, tuple[Callable[[Any, ArtifactStore], None], Callable[[Any, ArtifactStore, Report], str]]] = {
    "pack": (check_pack, do_pack),
    "sweep": (check_sweep, do_sweep),
    "pipeline": (check_yaml, do_pipeline),
    "pareto": (check_yaml, do_pareto),
    "train": (check_train, do_train),
    "distill": (check_distill, do_distill),
    "evaluate": (check_evaluate, do_evaluate),
}
"""What refuses and what does each kind of work, by the name of its field in JobSpec."""
