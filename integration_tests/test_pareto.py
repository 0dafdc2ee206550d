"""A sweep over variants of the main job: killed and run again, in one process and on Ray."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmpress_services.pipeline.pareto.front import front
from vlmpress_services.store.local import LocalStore

COMMAND = [sys.executable, "-P", "-m", "vlmpress_services.cli", "pareto"]
SWEEP = {
    "axes": {"pack.group_size": [32], "edge.fusion": ["none"], "reduction.tau": [0.6]},
    "measure": ["student_reduced", "edge_packed"],
}
NAMES = [
    ("student_reduced", "base"),
    ("edge_packed", "base"),
    ("edge_packed", "pack.group_size 32"),
    ("edge_packed", "edge.fusion none"),
    ("student_reduced", "reduction.tau 0.6"),
]
TIMEOUT_S = 400


def configured(main_job: dict[str, Any], folder: Path, runner: str) -> Path:
    path = folder / f"{runner}.yaml"
    base = {**main_job, "out": str(folder / runner), "runner": runner}
    path.write_text(yaml.safe_dump({"base": base, **SWEEP}, sort_keys=False))
    return path


def run(config: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*COMMAND, str(config), "--json"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    points: list[dict[str, Any]] = json.loads(done.stdout)["points"]
    return points


@pytest.fixture(scope="module")
def local(main_job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A sweep that was killed once its base was made."""
    folder = tmp_path_factory.mktemp("local")
    config = configured(main_job, folder, "local")
    child = subprocess.Popen([*COMMAND, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (folder / "local/store/tags/edge_packed").exists():
        assert child.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return folder / "local", run(config)


def test_every_model_is_measured_once(local: tuple[Path, list[dict[str, Any]]]) -> None:
    out, points = local
    assert [(point["model"], point["variant"]) for point in points] == NAMES
    assert len({point["digest"] for point in points}) == len(points)
    costs = [(point["weight_bytes"], point["prefill_gmacs"], -point["accuracy"]) for point in points]
    assert [point["on_front"] for point in points] == front(costs)
    store = LocalStore(out / "store")
    report = store.verify("pareto")
    assert {file.path for file in report.manifest.files} == {"pareto.json", "pareto.md", "pareto.svg"}
    assert (report.path / "pareto.svg").read_text().startswith("<svg")
    evaluated = [store.verify(parent.digest).manifest.evaluation.model for parent in report.manifest.parents]
    assert evaluated == [point["digest"] for point in points]


def test_ray_finds_the_same(main_job: dict[str, Any], local: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    points = run(configured(main_job, tmp_path, "ray"))
    # An evaluation's own digest tells nothing here: it is of the same model and the same answers.
    assert [{**point, "evaluation": ""} for point in points] == [{**point, "evaluation": ""} for point in local[1]]
