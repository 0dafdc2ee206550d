"""The bench whole, on tiny models; only one test pays for a process."""

import json
import time
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, InternVLConfig, LlamaConfig, Qwen2_5_VLConfig, Qwen2VLConfig

import vlmpress.cli
from edgevlm import EdgeVlmConfig, cli
from edgevlm.benching import rounds, worker
from edgevlm.benching.jobs import BenchJob
from edgevlm.benching.random_weights import random_model
from edgevlm.benching.shares import time_shares
from edgevlm.benching.summary import bench_table, summarize
from edgevlm.benching.timing import peak_bytes, reset_peak
from edgevlm.errors import BenchError, EdgeVlmError, ModelDirectoryError
from edgevlm.profiling.inputs import request_inputs
from edgevlm.profiling.layouts import ImageSize
from edgevlm.profiling.parts import COMPRESSOR, FUSION, HEAD, LANGUAGE, PROJECTOR, VISION
from vlmpress.artifact import ArtifactError

QWEN_TEXT = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}  # fmt: skip
QWEN_TOKENS = {"image_token_id": 36, "video_token_id": 37, "vision_start_token_id": 38, "vision_end_token_id": 39}


def make_config(tiny, name):
    if name == "edgevlm":
        return EdgeVlmConfig(vision_config=tiny.vision_config("siglip2"), text_config=tiny.text_config("qwen2"),
                             num_compressed_tokens=4, image_token_id=4)  # fmt: skip
    if name == "internvl":
        text = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
        vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "image_size": 32, "patch_size": 8, "attention_bias": True}  # fmt: skip
        return InternVLConfig(text_config=text, vision_config=vision, image_token_id=39, tie_word_embeddings=False)
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14}
    if name == "qwen2_vl":
        vision |= {"embed_dim": 16, "hidden_size": 32}
        return Qwen2VLConfig(text_config=dict(QWEN_TEXT), vision_config=vision, tie_word_embeddings=True, **QWEN_TOKENS)
    vision |= {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(text_config=dict(QWEN_TEXT), vision_config=vision, tie_word_embeddings=True, **QWEN_TOKENS)


NAMES = ("edgevlm", "qwen2_vl", "qwen2_5_vl", "internvl")


@pytest.fixture
def directory(tiny, tmp_path):
    """Directories that hold a configuration and nothing else."""

    def make(name):
        make_config(tiny, name).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def job_for(path, **changes):
    settings = {"image": "60x40", "num_text_tokens": 7, "num_new_tokens": 3, "is_directory": True}
    return BenchJob(model=str(path), **(settings | {"random_weights": True} | changes))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_job_of_each_kind(directory, name, batch_size):
    job = job_for(directory(name), batch_size=batch_size, num_repeats=2, with_shares=True)
    measured = worker.run_job(job)
    assert len(measured["ttft_s"]) == len(measured["decode_tokens_per_s"]) == 2
    assert min(measured["ttft_s"] + measured["decode_tokens_per_s"]) > 0
    assert measured["peak_bytes"] > measured["num_params"]
    assert sum(measured["ttft_shares"].values()) == pytest.approx(1.0)
    assert sum(measured["decode_shares"].values()) == pytest.approx(1.0)
    parts = {VISION, PROJECTOR, LANGUAGE, HEAD, "other"} | ({FUSION, COMPRESSOR} if name == "edgevlm" else set())
    assert set(measured["ttft_shares"]) == parts
    assert set(measured["decode_shares"]) == parts - {VISION, PROJECTOR, COMPRESSOR}


def test_one_token_has_no_rate(directory):
    assert worker.run_job(job_for(directory("edgevlm"), num_new_tokens=1))["decode_tokens_per_s"] == [None]


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_ordinary_numbers(tiny, name):
    config = make_config(tiny, name)
    model = random_model(config, dtype=torch.bfloat16)
    real = AutoModelForImageTextToText.from_config(config)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16
        nonzero = parameter[parameter != 0].abs()
        assert nonzero.numel() == 0 or nonzero.min() > torch.finfo(torch.bfloat16).tiny
        assert parameter.ndim < 2 or 0.015 < parameter.float().std() < 0.025
    inputs = request_inputs(config, image=ImageSize(width=60, height=40), num_text_tokens=7, dtype=torch.bfloat16)
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert logits.float().std() > 0
    assert torch.equal(logits, random_model(config, dtype=torch.bfloat16)(**inputs).logits)


def test_nested_parts_are_counted_once(tiny):
    config = make_config(tiny, "qwen2_vl")
    model = random_model(config, dtype=torch.float32)
    merger = model.model.visual.merger
    merge = merger.forward
    merger.forward = lambda *arguments: (time.sleep(0.2), merge(*arguments))[1]
    inputs = request_inputs(config, image=ImageSize(width=60, height=40), num_text_tokens=7)
    first, _ = time_shares(model, config, inputs)
    assert first[PROJECTOR] > 0.5
    assert first[VISION] < 0.5
    assert "forward" not in vars(model.model.visual)


def test_fusion_s_share_has_its_work_on_images(tiny):
    config = make_config(tiny, "edgevlm")
    model = random_model(config, dtype=torch.float32)
    remember = model.model.fusion.remember
    model.model.fusion.remember = lambda *arguments: (time.sleep(0.2), remember(*arguments))[1]
    inputs = request_inputs(config, image=ImageSize(width=60, height=40), num_text_tokens=7)
    assert time_shares(model, config, inputs)[0][FUSION] > 0.5


def test_peak_is_reset():
    device = torch.device("cpu")
    block = torch.ones(1 << 25)
    del block
    reset_peak(device)
    before = peak_bytes(device)
    block = torch.ones(1 << 24)
    assert peak_bytes(device) - before > 40e6
    del block


def record(job, number, first_s, rate=10.0, model_type="qwen2_vl"):
    shares = {"ttft_shares": {VISION: 0.5}, "decode_shares": {HEAD: 0.5}} if number == 0 else {}
    times = {"ttft_s": [first_s], "ttft_cpu_s": [first_s], "decode_tokens_per_s": [rate]}
    return {**times, "peak_bytes": 5, "model_type": model_type, "num_params": 7, **shares}


@pytest.fixture
def plan():
    base = {"num_new_tokens": 3}
    models = (BenchJob(model="auroraedge-v-2b", **base), BenchJob(model="qwen2-vl-2b", **base))
    return rounds.Plan(models=models, batch_sizes=(1, 8), num_rounds=2)


def test_rounds_are_interleaved_and_resumed(plan, monkeypatch, tmp_path):
    out, ran = tmp_path / "bench.json", []

    def fake(job, fail_after=3):
        if len(ran) == fail_after:
            raise BenchError("stopped")
        ran.append((job.model, job.batch_size, job.with_shares))
        return record(job, 0 if job.with_shares else 1, 1.0 if "aurora" in job.model else 4.0,
                      model_type="edgevlm" if "aurora" in job.model else "qwen2_vl")  # fmt: skip

    monkeypatch.setattr(rounds, "_run", fake)
    with pytest.raises(BenchError, match="stopped"):
        rounds.run_plan(plan, out, lambda *_: None)
    assert len(json.loads(out.read_text())["records"]) == 3
    monkeypatch.setattr(rounds, "_run", lambda job: fake(job, 100))
    told = []
    found = rounds.run_plan(plan, out, lambda *step: told.append(step))
    pair = ["auroraedge-v-2b", "qwen2-vl-2b"]
    assert [model for model, _, _ in ran] == pair * 4
    assert [size for _, size, _ in ran] == [1, 1, 8, 8] * 2
    assert [shares for _, _, shares in ran] == [True] * 4 + [False] * 4
    assert told[0] == (0, 8, "auroraedge-v-2b batch 1, round 1")
    assert told[-1][:2] == (8, 8)
    assert len(found["records"]) == 8
    rows = summarize(found["records"])
    assert [(row["model"], row["batch_size"], row["rounds"]) for row in rows] == [
        (model, size, 2) for size in (1, 8) for model in pair
    ]
    assert [row["ttft_speedup"] for row in rows] == [row["ttft_cpu_speedup"] for row in rows] == [4.0, 1.0] * 2
    assert "4.00" in bench_table(plan.settings, rows)


def test_more_rounds_and_models_go_on_in_the_same_file(plan, monkeypatch, tmp_path):
    out, ran = tmp_path / "bench.json", []
    monkeypatch.setattr(rounds, "_run", lambda job: ran.append(job.model) or record(job, 1, 1.0))
    rounds.run_plan(replace(plan, num_rounds=1, batch_sizes=(1,)), out, lambda *_: None)
    more = replace(plan, models=(*plan.models, replace(plan.models[0], model="internvl2.5-2b")), batch_sizes=(1,))
    rounds.run_plan(more, out, lambda *_: None)
    assert ran == [
        "auroraedge-v-2b",
        "qwen2-vl-2b",
        "internvl2.5-2b",
        "auroraedge-v-2b",
        "qwen2-vl-2b",
        "internvl2.5-2b",
    ]


def test_a_file_of_other_settings_or_none_is_refused(plan, monkeypatch, tmp_path):
    out = tmp_path / "bench.json"
    monkeypatch.setattr(rounds, "_run", lambda job: record(job, 1, 1.0))
    rounds.run_plan(replace(plan, num_rounds=1), out, lambda *_: None)
    other = replace(plan, models=tuple(replace(job, num_threads=3) for job in plan.models))
    with pytest.raises(BenchError, match="expected rounds with num_threads 3, got 1"):
        rounds.run_plan(other, out, lambda *_: None)
    for text in (
        "",
        "[]",
        '{"format": 1, "settings": {}, "records": [4]}',
        '{"format": 0, "settings": {}, "records": []}',
    ):
        out.write_text(text)
        with pytest.raises(BenchError, match="expected rounds of a bench"):
            rounds.run_plan(plan, out, lambda *_: None)


def test_without_a_rival_nothing_is_compared():
    (row,) = summarize([{"model": "m", "batch_size": 1, "round": 0, **record(None, 0, 2.0, None, "edgevlm")}])
    assert row["ttft_speedup"] is row["decode_speedup"] is row["decode_tokens_per_s"] is None


def test_half_a_checkpoint(directory):
    with pytest.raises(ModelDirectoryError, match="expected weights"):
        worker.run_job(job_for(directory("edgevlm"), random_weights=False))


def run(*arguments):
    return vlmpress.cli.run(cli.app, (EdgeVlmError, ArtifactError), [str(argument) for argument in arguments])


TINY = ("--image", "60x40", "--text-tokens", 7, "--tokens", 2, "--threads", 1, "--device", "cpu", "--rounds", 1)


def test_command_with_a_process(directory, monkeypatch, capfd, tmp_path):
    out = tmp_path / "bench.json"
    command = ("bench", directory("edgevlm"), "--random-weights", "--out", out, *TINY)
    assert run(*command, "--json") == 0
    (row,) = json.loads(capfd.readouterr().out)["models"]
    assert row["model_type"] == "edgevlm"
    assert row["ttft_speedup"] is None
    monkeypatch.setattr(rounds, "_FRESH_PROCESS", ("false",))
    assert run(*command) == 0, "what is finished was run again"
    assert "first token" in capfd.readouterr().out


def test_save_writes_an_ordinary_directory(directory, monkeypatch, capfd, tmp_path):
    out = tmp_path / "saved"
    monkeypatch.setattr(rounds, "_FRESH_PROCESS", ("false",))
    assert run("bench", directory("edgevlm"), "--random-weights", "--save", out) == 0
    loaded, info = AutoModelForImageTextToText.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16
    assert not info["missing_keys"]
    measured = worker.run_job(job_for(out, random_weights=False))
    assert measured["num_params"] == loaded.num_parameters()
    assert run("bench", directory("edgevlm"), "--random-weights", "--save", out) == 2
    assert "expected a new directory" in capfd.readouterr().err
    assert run("bench", directory("edgevlm"), "--save", tmp_path / "other") == 2
    assert "--random-weights" in capfd.readouterr().err


def test_a_process_that_fails(directory, monkeypatch, capfd):
    monkeypatch.setattr(rounds, "_FRESH_PROCESS", ("sh", "-c", "echo error: no room >&2; exit 2", "sh"))
    assert run("bench", directory("edgevlm"), "--random-weights", *TINY) == 2
    assert "its process ended with 2: no room" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [
    ("--models", "other"), ("--models", ""), ("--models", "qwen2-vl-2b,qwen2-vl-2b"), ("--batch", "1,x"),
    ("--batch", "0"), ("--device", "tpu"), ("--image", "4"), ("nowhere",), ("--save", "x"),
])  # fmt: skip
def test_bad_input(arguments, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("bench", *arguments) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "unexpected" not in lines[0]
    assert list(tmp_path.iterdir()) == []
