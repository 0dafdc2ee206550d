"""The steps of the main job, in order, each an artifact with its parents."""

import shutil
import sys
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vlmpress.artifact import Artifact, digest_file
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.data import load_records
from vlmpress_services.pipeline import training
from vlmpress_services.pipeline.config import RunConfig
from vlmpress_services.pipeline.datasets import make_dataset
from vlmpress_services.pipeline.distillation import export_student, make_distillation, read_matches
from vlmpress_services.pipeline.evaluation import make_evaluation
from vlmpress_services.pipeline.packing import make_packed
from vlmpress_services.pipeline.reporting import RunFacts, Variant, report_fields, write_report
from vlmpress_services.pipeline.stepping import Stepper
from vlmpress_services.serving.launch import served
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.opening import open_runner
from vlmpress_services.workers.runners import Runner

DISTRIBUTIONS = ("contracts", "quantpack", "tokenreduce", "stagetrain", "verbdistill", "edgevlm", "services")
SERVICES = "artifact,edgevlm"
# At this size a second thread, or one that spins while it waits, only takes time from the others.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
REPORT_FILES = ("report.json", "report.md", "report.html")


def run(config: RunConfig, command: str, only: str | None = None) -> dict[str, Any] | None:
    """Runs the main job; gives the report's fields, or None when it ended early with `only`.

    Args:
        config: Everything the result depends on.
        command: What the user typed, for the report.
        only: Name of the step to end with, for example "teacher".
    """
    # One thread is as fast at this size, and sums in a fixed order give the same weights everywhere.
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    stepper = Stepper(config.out.resolve(), config.seed, _versions())
    # Before any cluster starts: bad data is the commonest mistake, and says so at once.
    dataset = stepper.run("dataset", _data_key(config), (), partial(make_dataset, config.data, config.seed))
    with open_runner(config.runner) as runner:
        models = _make_models(config, dataset, stepper, runner, only)
        if only is not None:
            return None
        with served(stepper.store.root, SERVICES, environment=THREADS, log_file=config.out / "server.log") as address:
            variants = [
                Variant(
                    name,
                    model,
                    make_evaluation(name, model, dataset, address, config.evaluation, stepper, runner),
                )
                for name, model in models.items()
            ]
        return _report(config, command, stepper, runner, dataset, variants)


def _make_models(
    config: RunConfig, dataset: Artifact, stepper: Stepper, runner: Runner, only: str | None
) -> dict[str, Artifact]:
    """Every variant's model by name; ends after the step `only`."""
    seed, models = config.seed, dict[str, Artifact]()
    data = ("dataset", dataset)
    tower = stepper.run(
        "tower", asdict(config.tower), [data], partial(training.make_tower, dataset, config.tower, seed)
    )

    def fresh(name: str, step: Any) -> Artifact:
        make = partial(training.make_llava, tower, dataset, step, seed)
        return stepper.run(name, asdict(step), [("tower", tower), data], make)

    models["teacher"] = teacher = fresh("teacher", config.teacher)
    if only == "teacher":
        return models
    models["student_sft"] = fresh("student_sft", config.student_sft)
    distillation = stepper.run(
        "distillation",
        [asdict(config.distill), config.student_sft.num_layers],
        [("teacher", teacher), ("tower", tower), data],
        partial(make_distillation, teacher, tower, dataset, config.student_sft, config.distill, seed, runner),
    )
    distilled = stepper.run(
        "student_distilled", {}, [("distillation", distillation)], partial(export_student, distillation)
    )
    models["student_distilled"] = distilled
    base = ("student", distilled)
    reduction = config.reduction
    policy = stepper.run(
        "reduction_policy",
        [reduction.token_share, reduction.factors, reduction.num_calibration_images],
        [base, data],
        partial(training.make_policy, distilled, dataset, reduction),
    )
    models["student_reduced"] = stepper.run(
        "student_reduced",
        asdict(reduction),
        [base, ("policy", policy), data],
        partial(training.make_reduced, distilled, dataset, policy, reduction, seed),
    )
    models["edge"] = edge = stepper.run(
        "edge", asdict(config.edge), [base, data], partial(training.make_edge, distilled, dataset, config.edge, seed)
    )
    # Only a pack that is calibrated depends on the data.
    parents = [("model", edge), data] if config.pack.num_calibration_questions else [("model", edge)]
    models["edge_packed"] = stepper.run(
        "edge_packed", asdict(config.pack), parents, partial(make_packed, edge, dataset, config.pack)
    )
    return models


def _report(
    config: RunConfig, command: str, stepper: Stepper, runner: Runner, dataset: Artifact, variants: list[Variant]
) -> dict[str, Any]:
    """Writes the report into the output folder and keeps it as an artifact."""
    facts = RunFacts(config.seed, command, _versions(third_party=True), runner.name, stepper.records)
    fields = report_fields(dataset, variants, facts)
    with stepper.store.draft() as draft:
        write_report(draft.path, fields, dataset, variants, read_matches(stepper.store.resolve("distillation")))
        artifact = draft.commit(
            artifact_pb2.Report(title=f"vlmpress run on {fields['data']['name']}"),
            producer=("vlmpress-services", version("vlmpress-services")),
            parents=[(f"evaluation of {variant.name}", variant.evaluation.digest) for variant in variants],
        )
    stepper.store.tag("report", artifact.digest)
    for name in REPORT_FILES:
        temporary = config.out / f".{name}.tmp"
        shutil.copyfile(artifact.path / name, temporary)
        temporary.replace(config.out / name)
    return fields


def _data_key(config: RunConfig) -> dict[str, Any]:
    """The data step's configuration; a file counts by its content, its images by name, size and time."""
    key = asdict(config.data)
    if config.data.file is not None:
        records = load_records(config.data.file, config.data.images)
        images = sorted({path for record in records for path in record.images})
        key["sha256"] = digest_file(config.data.file)
        key["images"] = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in images]
    return key


def _versions(third_party: bool = False) -> dict[str, str]:
    names = [f"vlmpress-{name}" for name in DISTRIBUTIONS]
    found = {name: version(name) for name in names}
    if third_party:
        found |= {name: version(name) for name in ("torch", "transformers")}
        found["python"] = ".".join(str(part) for part in sys.version_info[:3])
    return found


def model_directory(config: RunConfig, name: str) -> Path:
    """Directory of a step's artifact of a finished run."""
    return LocalStore(config.out / "store").resolve(name).path
