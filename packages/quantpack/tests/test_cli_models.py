"""Commands that run a model: calibration, search, sweep, export."""

import json
from pathlib import Path

import pytest

from quantpack import inspect, load, verify
from quantpack.cli import main
from quantpack.container.reading import PackReader


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["quantpack", *map(str, arguments)])
        capsys.readouterr()
        code = main()
        printed, error = capsys.readouterr()
        return code, printed, error

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--granularity", "agq", "--group-size", "32", "--axis", "in", "--bits", "3"),
        ("--granularity", "rows", "--rows", "4", "--rounding", "gptq"),
        ("--method", "awq", "--group-size", "32", "--embeddings", "int4"),
        ("--method", "mbq", "--group-size", "32"),
        ("--method", "ecm", "--alpha", "0.5", "--symmetric", "--granularity", "channel"),
    ],
    ids=str,
)
def test_pack_with_calibration(call, vqa_dir: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    data = ("--calibration", vqa_dir / "vqa.jsonl", "--num-samples", "8")
    code, printed, error = call("pack", vqa_dir / "model", tmp_path / "pack", *options, *data)
    assert code == 0, error
    assert "total" in printed
    verify(tmp_path / "pack")
    load(tmp_path / "pack")
    entry = PackReader(tmp_path / "pack" / "model.safetensors").index.quantized[0]
    assert entry.scheme is not None
    given = dict(zip(options[::2], options[1::2], strict=False))
    assert entry.scheme.bits == int(given.get("--bits", 4))
    assert (tmp_path / "pack" / "tokenizer.json").exists()
    if entry.scheme.granularity == "agq":
        assert entry.scheme.blocks[0].group_size == 32


def test_search_keeps_its_path(call, vqa_dir: Path, tmp_path: Path) -> None:
    code, printed, error = call(
        "pack", vqa_dir / "model", tmp_path / "pack", "--max-drop", "1", "--group-size", "32",
        "--calibration", vqa_dir / "vqa.jsonl", "--num-samples", "4", "--num-questions", "4",
    )  # fmt: skip
    assert code == 0, error
    assert "language  CR" in printed
    verify(tmp_path / "pack")
    search = json.loads((tmp_path / "pack" / "quantization.json").read_text(encoding="utf-8"))["search"]
    assert search["parts"].keys() == {"vision", "language"}
    assert len(search["parts"]["vision"]["scalings"]) == 11
    assert (tmp_path / "pack" / "quantization.svg").read_text(encoding="utf-8").startswith("<svg")
    vision = next(report for report in inspect(tmp_path / "pack") if report.part == "vision")
    assert vision.cr_codes > 1.2


def test_sweep_writes_figures_and_a_picture(call, vqa_dir: Path, tmp_path: Path) -> None:
    data = ("--calibration", vqa_dir / "vqa.jsonl", "--num-samples", "4", "--num-questions", "4")
    code, printed, error = call("sweep", vqa_dir / "model", tmp_path / "out", *data, "--json")
    assert code == 0, error
    fields = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert json.loads(printed) == fields
    assert {point["name"] for point in fields["points"]} >= {"group 128", "channel", "2 rows", "tensor", "AWQ", "MBQ"}
    assert (tmp_path / "out" / "sweep.svg").read_text(encoding="utf-8").startswith("<svg")
    assert call("sweep", vqa_dir / "model", tmp_path / "out", *data)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_export_writes_a_model_directory(call, vqa_dir: Path, tmp_path: Path) -> None:
    assert call("pack", vqa_dir / "model", tmp_path / "pack", "--group-size", "32")[0] == 0
    code, _, error = call("export", tmp_path / "pack", tmp_path / "out")
    assert code == 0, error
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert call("pack", vqa_dir / "model", tmp_path / "rows", "--granularity", "rows")[0] == 0
    code, _, error = call("export", tmp_path / "rows", tmp_path / "none")
    assert code == 2
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_bench_times_a_pack(call, vqa_dir: Path, tmp_path: Path, plain_pack: Path) -> None:
    assert call("pack", vqa_dir / "model", tmp_path / "of-model")[0] == 0
    code, printed, error = call("bench", tmp_path / "of-model", "--rounds", "2", "--json")
    assert code == 0, error
    fields = json.loads(printed)
    assert all(value > 0 for value in fields.values())
    assert call("bench", plain_pack, "--rounds", "1")[1].count("\n") == 3
    assert call("bench", tmp_path, "--rounds", "1")[0] == 2


def test_shapes_alone(call, vqa_dir: Path) -> None:
    code, printed, _ = call("inspect", "--shapes", vqa_dir / "model" / "config.json", "--json")
    assert code == 0
    fields = json.loads(printed)
    assert [part["part"] for part in fields["parts"]] == ["vision", "language", "other"]
    assert [row["name"] for row in fields["savings"]] == ["AWQ+C", "MBQ+C", "ECM"]
    assert "ECM" in call("inspect", "--shapes", vqa_dir / "model")[1]


def test_what_does_not_fit_together_is_one_line(call, vqa_dir: Path, tmp_path: Path) -> None:
    model, data = vqa_dir / "model", ("--calibration", vqa_dir / "vqa.jsonl")
    (tmp_path / "no_model").mkdir()
    for arguments in (
        ("pack", model, tmp_path / "new", "--rounding", "gptq"),
        ("pack", model, tmp_path / "new", "--method", "awq", "--rounding", "gptq", *data),
        ("pack", model, tmp_path / "new", "--alpha", "0.5", *data),
        ("pack", model, tmp_path / "new", "--method", "ecm", "--alpha", "1.5", *data),
        ("pack", model, tmp_path / "new", "--max-drop", "0.01"),
        ("pack", model, tmp_path / "new", "--method", "awq", "--calibration", tmp_path / "none.jsonl"),
        ("pack", model, tmp_path / "new", "--method", "awq", *data, "--num-samples", "0"),
        ("sweep", tmp_path / "no_model", tmp_path / "new", *data),
        ("inspect",),
        ("inspect", model, "--shapes", model),
        ("inspect", "--shapes", tmp_path),
    ):
        code, printed, error = call(*arguments)
        assert code == 2, arguments
        assert printed == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
        assert not (tmp_path / "new").exists()
