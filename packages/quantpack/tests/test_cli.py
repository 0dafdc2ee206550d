"""The command: what it prints, and its exit codes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantpack import Scheme, cli, read_tensors
from quantpack.container.reading import PackReader


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["quantpack", *map(str, arguments)])
        code = cli.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_pack_inspect_verify_unpack(call, llava_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    code, printed, _ = call("pack", llava_dir, out)
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()] == ["part", "vision", "language", "other", "total"]
    code, printed, _ = call("inspect", out, "--json")
    assert code == 0
    report = json.loads(printed)
    assert list(report) == ["vision", "language", "other", "total"]
    assert report["total"]["bytes_on_disk"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert call("inspect", out)[0] == 0
    assert call("verify", out) == (0, f"{out}: ok\n", "")
    restored = tmp_path / "restored.safetensors"
    assert call("unpack", out, restored, "--dtype", "float32")[0] == 0
    expected = read_tensors(out, torch.float32)
    found = load_file(restored)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert found.keys() == expected.keys()


@pytest.mark.parametrize(
    ("options", "scheme"),
    [
        ((), Scheme()),
        (("--granularity", "tensor"), Scheme(granularity="tensor")),
        (("--granularity", "channel", "--symmetric"), Scheme(granularity="channel", symmetric=True)),
        (("--granularity", "group", "--group-size", "32"), Scheme(group_size=32)),
    ],
    ids=str,
)
def test_options_make_the_scheme(call, plain_file: Path, tmp_path: Path, options: tuple[str, ...], scheme: Scheme):
    assert call("pack", plain_file, tmp_path / "out", *options)[0] == 0
    assert PackReader(tmp_path / "out" / "model.safetensors").index.scheme == scheme


def test_bad_input_is_one_line_and_exit_code_two(call, plain_file: Path, plain_pack: Path, tmp_path: Path) -> None:
    save_file({"bad": torch.full((2, 2), float("inf"))}, tmp_path / "inf.safetensors")
    new = tmp_path / "new"
    for arguments in (
        ("pack", tmp_path / "nothing", new),
        ("pack", plain_file, plain_pack),
        ("pack", plain_pack, new),
        ("pack", tmp_path / "inf.safetensors", new),
        ("pack", plain_file, new, "--granularity", "columns"),
        ("pack", plain_file, new, "--group-size", "0"),
        ("pack", plain_file, new, "--bits", "5"),
        ("pack", plain_file),
        ("unpack", tmp_path / "nothing", new),
        ("unpack", plain_pack, plain_file),
        ("unpack", plain_pack, new, "--dtype", "int8"),
        ("inspect", tmp_path),
        ("verify", tmp_path / "nothing"),
    ):
        code, printed, error = call(*arguments)
        assert code == 2, arguments
        assert printed == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert not new.exists()


def test_verify_exits_one_on_a_fault(call, plain_pack: Path) -> None:
    path = plain_pack / "model.safetensors"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    code, printed, error = call("verify", plain_pack)
    assert (code, printed) == (1, "")
    assert error.count("\n") == 1
    path.write_bytes(original)
    (plain_pack / "manifest.json").unlink()
    assert call("verify", plain_pack)[0] == 1
