"""The command on files of features: its JSON, its lines, its refusals."""

import json

import pytest
import torch
from safetensors.torch import save_file

import vlmpress.cli
from tokenreduce import ReductionPolicy, calibrate, dfmr, plan_budget, wire
from tokenreduce.cli import USER_ERRORS, app
from vlmpress.artifact import verify, write_policy


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = vlmpress.cli.run(app, USER_ERRORS, [str(argument) for argument in arguments])
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
@pytest.mark.parametrize("normalize", ["image", "none"])
def test_plan_json(run, path, features, mode, normalize):
    code, out, err = run("plan", "--features", path, "--tau", 0.4, "--mode", mode, "--normalize", normalize, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert list(answer) == ["images", "mean_tokens"]
    reduction = dfmr(features, 0.4, mode=mode, normalize=normalize)
    assert [image["factor"] for image in answer["images"]] == list(reduction.factors)
    assert [image["tokens"] for image in answer["images"]] == reduction.num_tokens
    assert answer["mean_tokens"] == sum(reduction.num_tokens) / 6
    for image, row in zip(answer["images"], reduction.sigmas.tolist(), strict=True):
        assert list(image) == ["factor", "tokens", "sigma"]
        assert image["sigma"] == pytest.approx(dict(zip("123", row, strict=True)))


def test_plan_for_people_and_options(run, path):
    code, out, _ = run("plan", "--features", path, "--tau", 0.4, "--factors", "1,2", "--normalize", "none")
    assert code == 0
    assert out.startswith("image 0: factor 2, 16 tokens  sigma(1)=0  sigma(2)=")
    assert out.splitlines()[-1].startswith("mean: ")


def test_plan_by_a_saved_policy(run, path, features, tmp_path):
    policy = ReductionPolicy(tau=0.45, mode="literal", factors=(1, 2), normalization="none")
    write_policy(tmp_path, wire.policy_to_proto(policy))
    for place in (tmp_path, tmp_path / "reduction_policy.json"):
        code, out, _ = run("plan", "--features", path, "--policy", place, "--json")
        assert code == 0
        answer = json.loads(out)
        reduction = dfmr(features, 0.45, (1, 2), "literal", "none")
        assert [image["tokens"] for image in answer["images"]] == reduction.num_tokens
        assert list(answer["images"][0]["sigma"]) == ["1", "2"]
    code, out, err = run("plan", "--features", path, "--policy", tmp_path, "--mode", "literal")
    assert (code, out) == (2, "")
    assert "--mode" in err


@pytest.mark.parametrize("limit", [54, 55, 150, 300, 10**30])
def test_plan_within_a_limit(run, path, features, limit):
    code, out, _ = run("plan", "--features", path, "--max-tokens", limit, "--json")
    assert code == 0
    answer = json.loads(out)
    assert [image["factor"] for image in answer["images"]] == [image.factor for image in plan_budget(features, limit)]
    assert sum(image["tokens"] for image in answer["images"]) <= limit


def test_a_limit_below_the_least_is_refused(run, path):
    code, out, err = run("plan", "--features", path, "--max-tokens", 53, "--json")
    assert (code, out) == (2, "")
    assert err.startswith("error: limit: expected at least 54 visual tokens")


@pytest.mark.parametrize("wish", [["--mean-tokens", "32"], ["--shares", "1=.2,2=.5,3=.3"]])
def test_calibrate_then_plan(run, path, features, wish):
    code, out, _ = run("calibrate", "--features", path, *wish, "--json")
    assert code == 0
    answer = json.loads(out)
    expected = calibrate([features], **({"mean_tokens": 32} if wish[1] == "32" else {"factor_shares": (0.2, 0.5, 0.3)}))
    assert answer["tau"] == expected.tau
    assert (answer["factors"], answer["num_images"]) == ([1, 2, 3], 6)
    assert list(answer["shares"].values()) == list(expected.calibration.shares)
    _, out, _ = run("plan", "--features", path, "--tau", answer["tau"], "--json")
    assert json.loads(out)["mean_tokens"] == answer["mean_tokens"]
    assert run("calibrate", "--features", path, *wish)[1].startswith("tau ")


def test_calibrate_writes_an_artifact_once(run, path, features, tmp_path):
    arguments = ("calibrate", "--features", path, "--mean-tokens", 32, "--out", tmp_path / "policy", "--json")
    code, out, _ = run(*arguments)
    assert code == 0
    artifact = verify(tmp_path / "policy")
    assert artifact.digest == json.loads(out)["digest"]
    assert artifact.manifest.kind == "reduction_policy"
    assert artifact.manifest.producer.name == "vlmpress-tokenreduce"
    policy = calibrate([features], 32)
    assert wire.read_policy(tmp_path / "policy") == wire.policy_from_proto(artifact.manifest.reduction_policy) == policy
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "expected a path that does not exist yet" in err
    assert verify(tmp_path / "policy").digest == artifact.digest


def test_a_failed_calibration_leaves_nothing(run, path, tmp_path):
    out = tmp_path / "new" / "policy"
    code, _, err = run("calibrate", "--features", path, "--mean-tokens", 900, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert not out.exists()
    assert list(out.parent.iterdir()) == []


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
        ["plan", "--tau", "1", "--max-tokens", "100"],
        ["plan", "--tau", "1", "--encoder", "patches:8"],
        ["plan", "--tau", "1", "--layer", "-2"],
        ["plan", "--tau", "1", "--colour"],
        ["plan", "--policy", "missing"],
        ["plan", "--max-tokens", "-1"],
        ["plan", "--max-tokens", "100", "--mode", "literal"],
        ["plan", "--max-tokens", "100", "--mode", "both"],
        ["calibrate", "--mean-tokens", "65"],
        ["calibrate", "--mean-tokens", "1"],
        ["calibrate", "--mean-tokens", "nan"],
        ["calibrate"],
        ["calibrate", "--mean-tokens", "20", "--shares", "1=1,2=0,3=0"],
        ["calibrate", "--shares", "1=.5"],
        ["calibrate", "--shares", "1=.5,2=.5,3=.5"],
        ["calibrate", "--shares", "1=.5,2=.5,2=0"],
        ["calibrate", "--shares", "1:.5"],
        ["calibrate", "--shares", "1=nan,2=.5,3=.5"],
        ["calibrate", "--mean-tokens", "20", "--images", "."],
        ["calibrate", "--mean-tokens", "20", "--data", "missing.jsonl"],
    ],
)
def test_bad_options_exit_2_with_one_line(run, path, arguments):
    code, out, err = run(*arguments, "--features", path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "unexpected" not in err
    assert err.count("\n") == 1


def test_bad_files_exit_2_with_one_line(run, tmp_path):
    (tmp_path / "text").write_text("no tensors", encoding="utf-8")
    save_file({"other": torch.zeros(1, 2, 2, 2)}, tmp_path / "other")
    save_file({"features": torch.zeros(2, 2, 2)}, tmp_path / "rank")
    save_file({"features": torch.zeros(0, 2, 2, 2)}, tmp_path / "empty")
    save_file({"features": torch.full((1, 2, 2, 2), float("nan"))}, tmp_path / "nan")
    save_file({"features": torch.zeros(1, 2, 2, 2, dtype=torch.int32)}, tmp_path / "integers")
    for command in (["plan", "--tau", 1], ["plan", "--max-tokens", 9], ["calibrate", "--mean-tokens", 4]):
        for name in ("missing", "text", "other", "rank", "empty", "nan", "integers"):
            code, out, err = run(*command, "--features", tmp_path / name)
            assert (code, out) == (2, ""), name
            assert err.startswith("error: "), name
            assert "unexpected" not in err, name
            assert err.count("\n") == 1, name
