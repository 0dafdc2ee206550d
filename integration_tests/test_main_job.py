"""The main job as its own process: local and Ray, killed and run again, and its report."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vlmpress.artifact import verify

COMMAND = [sys.executable, "-P", "-m", "vlmpress_services.cli"]
VARIANTS = ["teacher", "student_sft", "student_distilled", "student_reduced", "edge", "edge_packed"]
FIGURES = (
    "name",
    "accuracy",
    "accuracy_by_type",
    "params",
    "bytes_on_disk",
    "visual_tokens_mean",
    "prefill_gmacs",
    "artifact",
)
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def config(tmp_path_factory, main_job) -> Path:
    path = tmp_path_factory.mktemp("main_job") / "small.yaml"
    path.write_text(yaml.safe_dump(main_job))
    return path


def _run(config: Path, out: Path, runner: str) -> dict:
    command = [*COMMAND, "run", str(config), "--out", str(out), "--runner", runner]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads((out / "report.json").read_text())


def _kill_after(tag: str, config: Path, out: Path) -> None:
    """Starts a run and kills it, unasked, as soon as a step is there."""
    child = subprocess.Popen(
        [*COMMAND, "run", str(config), "--out", str(out), "--runner", "local"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (out / "store" / "tags" / tag).exists():
        assert child.poll() is None, f"ended before {tag}"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def _figures(report: dict) -> list[dict]:
    return [{name: variant[name] for name in FIGURES} for variant in report["variants"]]


@pytest.fixture(scope="module")
def local(config, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("local") / "out"
    _kill_after("student_sft", config, out)
    return out, _run(config, out, "local")


def test_a_killed_run_goes_on_where_it_was(local):
    _, report = local
    reused = {step["name"]: step["reused"] for step in report["steps"]}
    assert [name for name, was in reused.items() if was] == ["dataset", "tower", "teacher", "student_sft"]


def test_ray_gives_the_same_models_and_accuracies(config, local, tmp_path):
    report = _run(config, tmp_path / "out", "ray")
    assert report["runner"] == "ray"
    assert _figures(report) == _figures(local[1])


def test_the_report_is_whole(local):
    out, report = local
    assert [variant["name"] for variant in report["variants"]] == VARIANTS
    assert {"name", "num_train", "num_test", "question_only_accuracy"} <= report["data"].keys()
    assert {"seed", "versions", "command", "steps"} <= report.keys()
    for variant in report["variants"]:
        assert set(variant["ttft_ms"]) == {"median", "p90"}
        assert 0 < variant["ttft_ms"]["median"] <= variant["ttft_ms"]["p90"]
        assert 0 < variant["prefill_gmacs"] < 1
    by_name = {variant["name"]: variant for variant in report["variants"]}
    assert by_name["teacher"]["visual_tokens_mean"] == 64
    assert by_name["student_reduced"]["visual_tokens_mean"] < 64
    assert by_name["edge"]["visual_tokens_mean"] == by_name["edge_packed"]["visual_tokens_mean"] == 16
    assert by_name["edge"]["params"] == by_name["edge_packed"]["params"]
    assert by_name["edge_packed"]["bytes_on_disk"] <= 0.35 * 2 * by_name["edge"]["params"]
    assert "<svg" in (out / "report.html").read_text()
    assert not re.search(r'(src|href)="(https?:)?//', (out / "report.html").read_text())
    for name in VARIANTS:
        assert f"| {name} |" in (out / "report.md").read_text()


def test_every_artifact_verifies_and_knows_its_parents(local):
    out, report = local
    artifacts = {path.name: verify(path) for path in (out / "store" / "artifacts").iterdir()}
    for artifact in artifacts.values():
        assert all(parent.digest in artifacts for parent in artifact.manifest.parents)
    assert {variant["artifact"] for variant in report["variants"]} <= artifacts.keys()
    kinds = {artifact.manifest.kind for artifact in artifacts.values()}
    assert kinds == {
        "dataset", "model", "distillation", "reduction_policy", "edge_model", "quantized_model", "evaluation", "report",
    }  # fmt: skip


def test_a_second_run_reuses_everything(config, local):
    report = _run(config, local[0], "local")
    assert all(step["reused"] for step in report["steps"])
    assert _figures(report) == _figures(local[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--nonsense"], "--nonsense"),
        (["demo", "--images", "x"], "--images: expected --data"),
        (["demo", "--data", "absent.jsonl"], "absent.jsonl: expected a readable dataset file"),
        (["run", "absent.yaml"], "absent.yaml: expected a readable YAML file"),
        (["run", "small.yaml", "--runner", "slurm"], "slurm"),
        (["demo", "--data", "broken.jsonl"], "broken.jsonl: line 2: expected a JSON object"),
        (["demo", "--data", "shape.json"], "shape.json: record 0: conversations: expected pairs"),
        (["demo", "--data", "image.jsonl"], "image.jsonl: line 1: image: expected a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    question = {"image": "absent.png", "question": "q", "answer": "a"}
    (tmp_path / "small.yaml").write_text("seed: 1")
    (tmp_path / "broken.jsonl").write_text('{"question": "q", "answer": "a"}\n{oops\n')
    (tmp_path / "shape.json").write_text('[{"conversations": [{"from": "human", "value": "q"}]}]')
    (tmp_path / "image.jsonl").write_text(json.dumps(question))
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert not list((tmp_path / "build").glob("demo/store/artifacts/*"))
