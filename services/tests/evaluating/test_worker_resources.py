"""What jobs say of their workers reaches the runner that starts them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs.work import do_work
from vlmpress_services.pipeline import main_job
from vlmpress_services.pipeline.config import parse_config
from vlmpress_services.pipeline.models import Models
from vlmpress_services.pipeline.pareto.config import parse_pareto
from vlmpress_services.pipeline.pareto.sweep import sweep
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.runners import LocalRunner

DATA = "data: {num_train_images: 24, num_test_images: 4, max_eval_questions: 4}"


class EnoughError(Exception):
    pass


class Recorder(LocalRunner):
    """Remembers where it was to run, and what each kind of task was to get."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []
        self.asked: dict[str, TaskResources] = {}

    def open(self, name: str, num_cpus: int = 1) -> AbstractContextManager[LocalRunner]:
        self.opened.append((name, num_cpus))
        return nullcontext(self)

    def each(self, function: Any, arguments: Sequence[tuple[Any, ...]], resources: TaskResources) -> Iterator[Any]:
        self.asked[function.__name__] = resources
        return super().each(function, arguments, resources)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    for module in ("workers.opening", "pipeline.main_job", "pipeline.pareto.sweep"):
        monkeypatch.setattr(f"vlmpress_services.{module}.open_runner", made.open)
    return made


@pytest.mark.parametrize(
    ("fields", "opened", "resources"),
    [
        ({}, ("local", 1), TaskResources(cpus=1, gpus=0, max_running=1)),
        (
            {"num_workers": 3, "cpus_per_worker": 1.5, "gpus_per_worker": 0.5},
            # Cores of a cluster that the job starts: enough for all of them.
            ("ray", 5),
            TaskResources(cpus=1.5, gpus=0.5, max_running=3),
        ),
    ],
)
def test_those_of_an_evaluation_job(
    recorder: Recorder,
    store: LocalStore,
    add_model: Any,
    add_dataset: Any,
    fields: dict[str, Any],
    opened: tuple[str, int],
    resources: TaskResources,
) -> None:
    job = pb.EvaluateJob(model=add_model().digest, dataset=add_dataset().digest, max_new_tokens=1, **fields)
    do_work(pb.JobSpec(evaluate=job), store, lambda *_: None)
    assert recorder.opened == [opened]
    assert recorder.asked == {"answer_shard": resources}


def test_those_of_the_main_job_s_evaluations(
    recorder: Recorder, add_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Artifact = add_model()

    def record(function: Any, arguments: Any, resources: TaskResources) -> Iterator[Any]:
        recorder.asked[function.__name__] = resources
        raise EnoughError

    # Neither the models nor the server is what this is about.
    monkeypatch.setattr(Models, "named", lambda models, name: model)
    monkeypatch.setattr(main_job, "served", lambda *_, **__: nullcontext(""))
    monkeypatch.setattr(recorder, "each", record)
    workers = "evaluation: {cpus_per_worker: 2.5, gpus_per_worker: 0.25}"
    with pytest.raises(EnoughError):
        main_job.run(parse_config(f"out: {tmp_path}\nrunner: ray\n{DATA}\n{workers}", "it"), "test")
    assert recorder.opened[0][0] == "ray"
    assert recorder.asked == {"answer_shard": TaskResources(cpus=2.5, gpus=0.25)}


def test_those_of_a_sweep_s_variants_and_of_its_evaluations(recorder: Recorder, tmp_path: Path) -> None:
    config = f"""
base:
  out: {tmp_path}
  runner: ray
  {DATA}
  tower: {{num_steps: 1}}
  teacher: {{num_steps: 1, num_layers: 2}}
  evaluation: {{cpus_per_worker: 3, gpus_per_worker: 0.5}}
axes: {{teacher.num_layers: [2]}}
measure: [teacher]
cpus_per_worker: 2
gpus_per_worker: 0.25
"""
    sweep(parse_pareto(config, "it"), "it", lambda share, note: None)
    assert recorder.opened[0][0] == "ray"
    assert recorder.asked == {
        "make_variant": TaskResources(cpus=2, gpus=0.25),
        "answer_shard": TaskResources(cpus=3, gpus=0.5),
    }
