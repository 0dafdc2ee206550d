"""ParetoJob: a sweep in a folder of the server's choice, whose report and everything behind it go into the store."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlmpress.artifact import Artifact
from vlmpress.cli import UserError
from vlmpress.job.v1 import job_pb2 as pb
from vlmpress_services.jobs.work import check_spec, do_work
from vlmpress_services.store.local import LocalStore

CONFIG = """
base:
  out: {elsewhere}
  runner: local
  data: {{num_train_images: 24, num_test_images: 4, max_eval_questions: 4}}
  tower: {{num_steps: 1}}
  teacher: {{num_steps: 1, num_layers: 2}}
axes: {{teacher.num_layers: [3]}}
measure: [teacher]
"""


def work(store: LocalStore, config: str) -> tuple[Artifact, list[float]]:
    """The result of a job, and every share it reported."""
    shares: list[float] = []
    job = pb.JobSpec(pareto=pb.ParetoJob(config_yaml=config))
    check_spec(job, store)
    digest = do_work(job, store, lambda share, note, details=None: shares.append(share))  # type: ignore[arg-type]
    return store.verify(digest), shares


def test_a_sweep_leaves_its_report_and_what_it_is_made_from_in_the_store(store: LocalStore, tmp_path: Path) -> None:
    config = CONFIG.format(elsewhere=tmp_path / "elsewhere")
    report, shares = work(store, config)
    points = json.loads((report.path / "pareto.json").read_text())["points"]
    assert [(point["model"], point["variant"]) for point in points] == [
        ("teacher", "base"),
        ("teacher", "teacher.num_layers 3"),
    ]
    assert report.manifest.kind == "report"
    assert [parent.digest for parent in report.manifest.parents] == [point["evaluation"] for point in points]
    for point in points:
        evaluation = store.verify(point["evaluation"])
        model, dataset = (store.verify(parent.digest) for parent in evaluation.manifest.parents)
        assert (model.digest, dataset.manifest.kind) == (point["digest"], "dataset")
        assert all(store.verify(parent.digest) for parent in model.manifest.parents)
    assert shares[0] == 0
    assert shares == sorted(set(shares))
    assert shares[-1] == pytest.approx(1)
    assert not (tmp_path / "elsewhere").exists()

    # The same again makes no step anew.
    before = made(store)
    again, _ = work(store, config)
    assert again.manifest.parents == report.manifest.parents
    assert made(store) == before


def made(store: LocalStore) -> dict[Path, Any]:
    """When each step's record was written."""
    found = {path: path.stat().st_mtime_ns for path in store.root.glob("runs/*/steps/*.json")}
    assert found
    return found


def test_a_sweep_that_cannot_be_done_names_the_field(store: LocalStore) -> None:
    with pytest.raises(UserError, match=r"^config_yaml: axes: runner: expected a field that models depend on$"):
        work(store, "axes: {runner: [local]}")
    assert not store.list()
