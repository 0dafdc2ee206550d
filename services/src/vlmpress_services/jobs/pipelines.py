"""PipelineJob and ParetoJob: the main job and its variants, in a folder of the store."""

from dataclasses import replace
from pathlib import Path

from vlmpress.artifact import digest_bytes
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.jobs.progress import OnProgress
from vlmpress_services.jobs.requirements import imported
from vlmpress_services.store.interface import ArtifactStore, reachable
from vlmpress_services.store.local import LocalStore


def check_yaml(job: pb.PipelineJob | pb.ParetoJob, store: ArtifactStore) -> None:
    """Refuses an empty configuration with InvalidRequestError; the worker, which may import what reads it, the rest."""
    if not job.config_yaml.strip():
        raise InvalidRequestError("config_yaml: expected a configuration, got an empty string")


def do_pipeline(job: pb.PipelineJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Runs the main job; the same configuration goes on where an earlier job was killed."""
    with imported("pipeline", "pipeline"):
        from vlmpress_services.pipeline.config import parse_config
        from vlmpress_services.pipeline.main_job import run
    out = _folder(job, store)
    config = replace(parse_config(job.config_yaml, "config_yaml"), out=out)
    run(config, "JobService.CreateJob", on_progress=on_progress)
    made = LocalStore(out / "store")
    tags = made.tags()
    return _take_over(made, store, set(tags.values()), tags["report"])


def do_pareto(job: pb.ParetoJob, store: ArtifactStore, on_progress: OnProgress) -> str:
    """Runs a sweep; as `do_pipeline`."""
    with imported("pareto", "pipeline"):
        from vlmpress_services.pipeline.pareto.config import parse_pareto
        from vlmpress_services.pipeline.pareto.sweep import sweep
    out = _folder(job, store)
    config = parse_pareto(job.config_yaml, "config_yaml")
    on_progress(0.0, "sweep")
    report = sweep(replace(config, base={**config.base, "out": str(out)}), "config_yaml", on_progress)
    made = LocalStore(out / "store")
    everything = {artifact.digest: artifact for artifact in made.list()}
    return _take_over(made, store, reachable(everything, [report.digest]), report.digest)


def _folder(job: pb.PipelineJob | pb.ParetoJob, store: ArtifactStore) -> Path:
    """Where results go is the server's choice, not the client's."""
    return store.root / "runs" / digest_bytes(job.config_yaml.encode())[:32]


def _take_over(made: LocalStore, store: ArtifactStore, digests: set[str], result: str) -> str:
    """Copies artifacts of a run into the store; gives the result's digest."""
    for digest in sorted(digests):
        store.add(made.resolve(digest).path)
    return result
