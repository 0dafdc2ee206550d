import json

import pytest
import torch
from safetensors.torch import save_file

import vlmpress.cli
from tokenreduce import TokenReduceError, dfmr
from tokenreduce.cli import app


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = vlmpress.cli.run(app, (TokenReduceError,), [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def features():
    scale = torch.linspace(0, 1, 6)[:, None, None, None]
    noise = torch.randn(6, 8, 8, 4, generator=torch.Generator().manual_seed(1))
    return noise * scale + torch.linspace(-1, 1, 4)


@pytest.fixture
def path(features, tmp_path):
    save_file({"features": features}, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


@pytest.mark.parametrize("mode", ["residual", "literal"])
def test_plan_json(run, path, features, mode):
    code, out, err = run("plan", "--features", path, "--tau", 0.4, "--mode", mode, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    reduction = dfmr(features, 0.4, mode=mode)
    assert [image["factor"] for image in answer["images"]] == list(reduction.factors)
    assert [image["tokens"] for image in answer["images"]] == reduction.num_tokens
    assert answer["mean_tokens"] == sum(reduction.num_tokens) / 6
    for image, row in zip(answer["images"], reduction.sigmas.tolist(), strict=True):
        assert image["sigma"] == dict(zip("123", row, strict=True))


def test_plan_for_people_and_options(run, path):
    code, out, _ = run("plan", "--features", path, "--tau", 0.4, "--factors", "1,2", "--normalize", "none")
    assert code == 0
    assert out.startswith("image 0: factor 2, 16 tokens  sigma(1)=0  sigma(2)=")
    assert out.splitlines()[-1].startswith("mean: ")


def test_calibrate_then_plan(run, path):
    code, out, _ = run("calibrate", "--features", path, "--mean-tokens", 32, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["factors"] == [1, 2, 3]
    _, out, _ = run("plan", "--features", path, "--tau", answer["tau"], "--json")
    assert json.loads(out)["mean_tokens"] == answer["mean_tokens"]
    assert run("calibrate", "--features", path, "--mean-tokens", 32)[1].startswith("tau ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--tau", "0"],
        ["plan", "--tau", "-1"],
        ["plan", "--tau", "nan"],
        ["plan", "--tau", "1", "--mode", "both"],
        ["plan", "--tau", "1", "--factors", "1,x"],
        ["plan", "--tau", "1", "--factors", "2,3"],
        ["plan", "--tau", "1", "--normalize", "rows"],
        ["plan"],
        ["plan", "--tau", "1", "--colour"],
        ["calibrate", "--mean-tokens", "65"],
        ["calibrate", "--mean-tokens", "1"],
    ],
)
def test_bad_options_exit_2_with_one_line(run, path, arguments):
    code, out, err = run(*arguments, "--features", path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_bad_files_exit_2_with_one_line(run, tmp_path):
    (tmp_path / "text").write_text("no tensors", encoding="utf-8")
    save_file({"other": torch.zeros(1, 2, 2, 2)}, tmp_path / "other")
    save_file({"features": torch.zeros(2, 2, 2)}, tmp_path / "rank")
    save_file({"features": torch.full((1, 2, 2, 2), float("nan"))}, tmp_path / "nan")
    save_file({"features": torch.zeros(1, 2, 2, 2, dtype=torch.int32)}, tmp_path / "integers")
    for name in ("missing", "text", "other", "rank", "nan", "integers"):
        code, out, err = run("plan", "--features", tmp_path / name, "--tau", 1)
        assert (code, out) == (2, ""), name
        assert err.startswith("error: "), name
        assert "unexpected" not in err, name
        assert err.count("\n") == 1, name
