"""What a worker does and says, and how its job then stands, without a process."""

import tempfile
import uuid
from typing import Any

import pytest

from quantpack import PartRecipe, Recipe
from quantpack.methods.gptq import Gptq
from quantpack.wire import recipe_to_proto
from vlmpress.job.v1 import job_pb2
from vlmpress.quantpack.v1 import quantpack_pb2
from vlmpress_services.errors import INTERNAL_TEXT
from vlmpress_services.jobs import work as job_work
from vlmpress_services.jobs.attending import Attendance
from vlmpress_services.jobs.lines import Speaker
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.jobs.worker import work

SCHEME = quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_GROUP, group_size=16)


def worked(store: Any, spec: job_pb2.JobSpec) -> job_pb2.Job:
    """A job as its worker's output leaves it, without a process."""
    table = JobTable(store.root)
    attempt = table.begin(table.create(uuid.uuid4().hex, spec).job_id)
    assert attempt is not None
    with tempfile.TemporaryFile() as output:
        work(spec, store, Speaker(output.fileno()))
        output.seek(0)
        attendance = Attendance(table, store, attempt, 1)
        attendance.hear(output.read())
    attendance.end("the worker is gone")
    return table.get(attempt.job_id)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(default=PartRecipe(method=Gptq())), "method gptq: expected calibration data, got none"),
        (None, "recipe: default: scheme: granularity: expected one of"),
    ],
    ids=["no calibration", "no scheme"],
)
def test_a_recipe_that_does_not_fit_fails_with_one_line(
    store: Any, add_model: Any, recipe: Recipe | None, message: str
) -> None:
    sent = quantpack_pb2.Recipe(default=quantpack_pb2.PartRecipe()) if recipe is None else recipe_to_proto(recipe)
    last = worked(store, job_pb2.JobSpec(pack=job_pb2.PackJob(model=add_model().digest, recipe=sent)))
    assert last.state == job_pb2.JOB_STATE_FAILED
    assert last.message.startswith(message)


def test_a_dataset_that_does_not_fit_fails_with_one_line(store: Any, add_model: Any) -> None:
    from vlmpress.dataset.v1 import dataset_pb2

    def job_on(records: str, image: bytes) -> str:
        with store.draft() as draft:
            (draft.path / "images").mkdir()
            (draft.path / "images" / "0.png").write_bytes(image)
            (draft.path / "records.jsonl").write_text(records)
            dataset = draft.commit(dataset_pb2.Dataset(name="bad"), producer=("test", "0")).digest
        pack = job_pb2.PackJob(model=add_model().digest, scheme=SCHEME, dataset=dataset)
        last = worked(store, job_pb2.JobSpec(pack=pack))
        assert last.state == job_pb2.JOB_STATE_FAILED
        assert str(store.root) not in last.message
        assert "\n" not in last.message
        return str(last.message)

    record = '{"split": "train", "image": "0.png", "question": "is it red ?", "answer": "yes"}'
    assert "expected a readable image" in job_on(record, b"no image")
    assert "line 1: expected a JSON object" in job_on("{", b"")
    assert "expected a file, got none at store/" in job_on(record.replace("0.png", "1.png"), b"")
    assert "expected at least one record of split train" in job_on(record.replace("train", "test"), b"")


@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret")])
def test_an_unexpected_error_of_a_job_stays_in_the_log(
    store: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def break_down(*_: Any) -> str:
        raise error

    monkeypatch.setattr("vlmpress_services.jobs.worker.do_work", break_down)
    last = worked(store, job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="x")))
    assert (last.state, last.message) == (job_pb2.JOB_STATE_FAILED, INTERNAL_TEXT)


def test_a_pipeline_job_runs_the_main_job_inside_the_store(
    store: Any, add_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main_job = pytest.importorskip("vlmpress_services.pipeline.main_job")
    seen: list[Any] = []

    def run(config: Any, command: str, on_progress: Any) -> None:
        on_progress(0.5, "half")
        from vlmpress.artifact.v1 import artifact_pb2
        from vlmpress_services.store.local import LocalStore

        seen.append(config)
        made = LocalStore(config.out / "store")
        with made.draft() as draft:
            (draft.path / "report.md").write_text("all well")
            report = draft.commit(artifact_pb2.Report(title="t"), producer=("test", "0"))
        made.tag("report", report.digest)

    monkeypatch.setattr(main_job, "run", run)
    spec = job_pb2.JobSpec(pipeline=job_pb2.PipelineJob(config_yaml="out: /somewhere/else\nseed: 7\n"))
    progress: list[Any] = []
    digest = job_work.do_work(spec, store, lambda done, note: progress.append((done, note)))
    assert store.verify(digest).manifest.kind == "report"
    assert seen[0].seed == 7
    assert seen[0].out.is_relative_to(store.root)
