"""What each kind of job does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmpress.artifact import digest_bytes
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import ExtraMissingError, InvalidRequestError
from vlmpress_services.jobs.distilling.job import check_distill, do_distill
from vlmpress_services.jobs.evaluating.job import check_evaluate, do_evaluate
from vlmpress_services.jobs.progress import OnProgress, Report
from vlmpress_services.jobs.quantizing.job import check_pack, check_sweep, do_pack, do_sweep
from vlmpress_services.jobs.training.job import check_train, do_train
from vlmpress_services.store.local import LocalStore


def check_spec(spec: pb.JobSpec, store: LocalStore) -> None:
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


def do_work(spec: pb.JobSpec, store: LocalStore, report: Report) -> str:
    """Does a job's work and gives the digest of its result."""
    kind = spec.WhichOneof("work")
    assert kind is not None, "checked when the job was created"
    _, do = _KINDS[kind]
    return do(getattr(spec, kind), store, report)


def _check_pipeline(job: pb.PipelineJob, store: LocalStore) -> None:
    if not job.config_yaml.strip():
        raise InvalidRequestError("config_yaml: expected a configuration, got an empty string")


def _do_pipeline(job: pb.PipelineJob, store: LocalStore, on_progress: OnProgress) -> str:
    """Runs the main job in a folder of the store; the same configuration goes on where an earlier job was killed."""
    try:
        from dataclasses import replace

        from vlmpress_services.pipeline.config import parse_config
        from vlmpress_services.pipeline.main_job import run
    except ImportError as error:
        raise ExtraMissingError(
            f"pipeline: not installed ({error}); pip install 'vlmpress-services[pipeline]' on the server"
        ) from error
    out = store.root / "runs" / digest_bytes(job.config_yaml.encode())[:32]
    # Where results go is the server's choice, not the client's.
    config = replace(parse_config(job.config_yaml, "config_yaml"), out=out)
    on_progress(0.0, "main job")
    run(config, "JobService.CreateJob")
    return _take_over(out / "store", store)


def _take_over(made: Path, store: LocalStore) -> str:
    """Copies every tagged artifact of a run into the store; gives the report's digest."""
    tags = LocalStore(made).tags()
    for digest in sorted(set(tags.values())):
        store.add(made / "artifacts" / digest)
    return tags["report"]


_KINDS: dict[str, tuple[Callable[[Any, LocalStore], None], Callable[[Any, LocalStore, Report], str]]] = {
    "pack": (check_pack, do_pack),
    "sweep": (check_sweep, do_sweep),
    "pipeline": (_check_pipeline, _do_pipeline),
    "train": (check_train, do_train),
    "distill": (check_distill, do_distill),
    "evaluate": (check_evaluate, do_evaluate),
}
"""What refuses and what does each kind of work, by the name of its field in JobSpec."""
