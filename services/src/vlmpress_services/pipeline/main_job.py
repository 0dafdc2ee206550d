"""The main job: every model of a run, served, measured and reported."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vlmpress.artifact import Artifact
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.pipeline.config import RunConfig
from vlmpress_services.pipeline.distillation import read_matches
from vlmpress_services.pipeline.evaluation import make_evaluation, ttft_ms
from vlmpress_services.pipeline.models import MODEL_STEPS, VARIANTS, Models, make_data, versions
from vlmpress_services.pipeline.reporting import RunFacts, Variant, report_fields, write_report
from vlmpress_services.pipeline.stepping import Stepper
from vlmpress_services.producer import producer
from vlmpress_services.serving.launch import served
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.opening import open_runner
from vlmpress_services.workers.runners import Runner

OnShare = Callable[[float, str], None]
SERVICES = "artifact,edgevlm"
# At this size a second thread, or one that spins while it waits, only takes time from the others.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
REPORT_FILES = ("report.json", "report.md", "report.html")


def run(
    config: RunConfig, command: str, only: str | None = None, on_progress: OnShare = lambda share, note: None
) -> dict[str, Any] | None:
    """Runs the main job; gives the report's fields, or None when it ended early with `only`.

    Args:
        config: Everything the result depends on.
        command: What the user typed, for the report.
        only: Name of the model to end with, for example "teacher".
        on_progress: Told the share of all steps that are behind, and which one comes.
    """
    quiet_torch()
    names = ("dataset", *MODEL_STEPS, *map(_evaluation, VARIANTS))
    seen: dict[str, None] = {}

    def begin(name: str) -> None:
        seen[name] = None
        on_progress((len(seen) - 1) / len(names), f"step {len(seen)} of {len(names)}: {name}")

    stepper = Stepper(config.out.resolve(), config.seed, versions(), begin)
    dataset = make_data(config, stepper)
    with open_runner(config.runner) as runner:
        models = Models(config, dataset, stepper, runner)
        if only is not None:
            models.named(only)
            return None
        made = {name: models.named(name) for name in VARIANTS}
        with served(stepper.store.root, SERVICES, environment=THREADS, log_file=config.out / "server.log") as address:
            variants = [
                Variant(name, model, _evaluate(name, model, dataset, address, config, stepper, runner))
                for name, model in made.items()
            ]
        return _report(config, command, stepper, runner, dataset, variants)


def _evaluate(
    name: str,
    model: Artifact,
    dataset: Artifact,
    address: str,
    config: RunConfig,
    stepper: Stepper,
    runner: Runner,
) -> Artifact:
    more = partial(ttft_ms, address, model, dataset)
    return make_evaluation(_evaluation(name), model, dataset, config.evaluation, stepper, runner, more)


def _evaluation(name: str) -> str:
    return f"evaluation-{name}"


def quiet_torch() -> None:
    """One thread: as fast at this size, and sums in a fixed order give the same weights everywhere; no bars."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _report(
    config: RunConfig, command: str, stepper: Stepper, runner: Runner, dataset: Artifact, variants: list[Variant]
) -> dict[str, Any]:
    """Writes the report into the output folder and keeps it as an artifact."""
    facts = RunFacts(config.seed, command, versions(third_party=True), runner.name, stepper.records)
    fields = report_fields(dataset, variants, facts)
    with stepper.store.draft() as draft:
        write_report(draft.path, fields, dataset, variants, read_matches(stepper.store.resolve("distillation")))
        artifact = draft.commit(
            artifact_pb2.Report(title=f"vlmpress run on {fields['data']['name']}"),
            producer=producer(),
            parents=[(f"evaluation of {variant.name}", variant.evaluation.digest) for variant in variants],
        )
    stepper.store.tag("report", artifact.digest)
    for name in REPORT_FILES:
        temporary = config.out / f".{name}.tmp"
        shutil.copyfile(artifact.path / name, temporary)
        temporary.replace(config.out / name)
    return fields


def model_directory(config: RunConfig, name: str) -> Path:
    """Directory of a step's artifact of a finished run."""
    return LocalStore(config.out / "store").resolve(name).path
