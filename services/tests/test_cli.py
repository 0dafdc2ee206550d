import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vlmpress_services import cli
from vlmpress_services.serving import registry


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["vlmpress", *map(str, arguments)])
    return cli.main()


def test_list_show_and_verify(
    store: Any, add_log: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = add_log()
    store.tag("it", artifact.digest)
    for ref in (artifact.digest, "it", artifact.path):
        assert run(monkeypatch, "artifact", "show", ref, "--json", "--store", store.root) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["digest"] == artifact.digest
        assert shown["manifest"]["files"][0]["path"] == "log.txt"
        assert run(monkeypatch, "artifact", "show", ref, "--store", store.root) == 0
        assert "log.txt 5 bytes" in capsys.readouterr().out
        assert run(monkeypatch, "artifact", "verify", ref, "--store", store.root) == 0
        assert capsys.readouterr().out == f"ok log {artifact.digest}\n"
    assert run(monkeypatch, "artifact", "list", "--store", store.root, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"digest": artifact.digest, "kind": "log", "tags": ["it"], "size_bytes": 5}
    ]
    assert run(monkeypatch, "artifact", "list", "--kind", "model", "--store", store.root) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda path: (path / "log.txt").write_text("jello"), "SHA-256"),
        (lambda path: (path / "log.txt").write_text("hell"), "expected 5 bytes, got 4"),
        (lambda path: (path / "log.txt").unlink(), "got none"),
        (lambda path: (path / "more").write_text(""), "not listed"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest.sha256"),
        (lambda path: (path / "manifest.sha256").unlink(), "manifest.sha256"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    ],
)
def test_any_fault_is_one_line_and_exit_code_1(
    store: Any,
    add_log: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Any,
    expected: str,
) -> None:
    artifact = add_log()
    fault(artifact.path)
    for arguments in ([artifact.digest], [artifact.path], []):
        assert run(monkeypatch, "artifact", "verify", *arguments, "--store", store.root) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        assert expected in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("artifact", "show", "none"),
        ("artifact", "verify", "none"),
        ("artifact", "verify", "../none"),
        ("artifact", "list", "--store", "none"),
        ("serve", "--services", "none"),
        ("serve", "--services", ""),
        ("serve", "--listen", "here"),
        ("serve", "--listen", "256.0.0.1:0", "--services", "evaluation"),
        ("serve", "--max-concurrent", "0"),
        ("serve", "--nothing"),
        ("nothing",),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Any, arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "vlmpress_services.cli", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr


def test_a_missing_package_names_its_extra(
    store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "is_installed", lambda name: name not in ("edgevlm", "stagetrain"))
    assert run(monkeypatch, "serve", "--store", store.root) == 2
    assert "pip install 'vlmpress-services[stagetrain,edgevlm]'" in capsys.readouterr().err
    assert not store.root.exists()


def refuse(_: Any) -> None:
    raise ImportError("not installed: stagetrain")


@pytest.mark.parametrize("commands", [None, SimpleNamespace(register=refuse)])
def test_a_missing_main_job_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], commands: Any
) -> None:
    monkeypatch.setitem(sys.modules, "vlmpress_services.pipeline.commands", commands)
    monkeypatch.setattr(cli, "app", cli.typer.Typer(no_args_is_help=True))
    for command in (("demo", "--seed", "1"), ("run", "x.yaml")):
        assert run(monkeypatch, *command) == 2
        assert "pip install 'vlmpress-services[pipeline]'" in capsys.readouterr().err


def test_services_are_exactly_those_named_in_a_fixed_order() -> None:
    assert registry.parse_services("all") == tuple(registry.SERVICES)
    assert registry.parse_services(" edgevlm, artifact") == ("artifact", "edgevlm")
