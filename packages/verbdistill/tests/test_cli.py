import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from verbdistill import load_verbalizers
from verbdistill.cli import app
from verbdistill.errors import VerbDistillError
from vlmpress.artifact import ArtifactError, verify
from vlmpress.cli import run
from vlmpress.data import DataError


def call(*arguments):
    return run(app, (VerbDistillError, ArtifactError, DataError), [str(argument) for argument in arguments])


def one_line_error(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def test_run_writes_student_and_verbalizers(run_folder, capsys):
    assert call("run", run_folder / "run.yaml", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    artifact = verify(run_folder / "out")
    assert printed["digest"] == artifact.digest
    assert artifact.manifest.kind == "distillation"
    assert list(artifact.manifest.distillation.teacher_layers) == [1, 2, 3]
    assert artifact.manifest.metrics["sft_last_nats"] == printed["last_losses_nats"]["sft"]
    student = AutoModelForImageTextToText.from_pretrained(run_folder / "out")
    begun = AutoModelForImageTextToText.from_pretrained(run_folder / "student")
    assert set(student.state_dict()) == set(begun.state_dict())
    assert not torch.equal(student.lm_head.weight, begun.lm_head.weight)
    report = json.loads((run_folder / "out" / "report.json").read_text())
    assert len(report["losses"]["interaction"]) == 2
    assert [len(match) for match in report["matches"]] == [2, 2]
    assert report["settings"]["verbalizer"] == "verb_ffn"
    assert (run_folder / "out" / "report.md").exists()
    assert load_verbalizers(run_folder / "verbalizers" / "student", student).layers == (1, 2)

    # Never over something that is there already.
    assert call("run", run_folder / "run.yaml") == 2
    assert "does not exist yet" in one_line_error(capsys)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_sft_steps: 2", "num_sft_steps: many", "num_sft_steps: expected a whole number"),
        ("num_sft_steps: 2", "", "distill: expected num_sft_steps, got none"),
        ("batch_size: 4", "batchsize: 4", "unknown key 'batchsize'"),
        ("batch_size: 4", "batch_size: 0", "batch_size: expected a whole number of at least 1"),
        ("teacher: teacher", "teacher: nowhere", "nowhere"),
        ("teacher: teacher", "teacher: 3", "teacher: expected a path"),
        ("data: data.jsonl", "data: none.jsonl", "none.jsonl"),
        ("out: out", "out: [", "expected a readable YAML file"),
        ("lora_rank: null", "lora_rank: 0", "lora_rank: expected"),
        ("lora_rank: null", "teacher_targets: [1]", "at least as many teacher"),
        ("lora_rank: null", "betas: 3", "betas: expected two numbers"),
        ("batch_size: 4", "targets: some", "targets: expected one of qwen2_vl"),
        ("batch_size: 4", "max_length: 0", "max_length: expected a whole number of at least 1"),
        ("batch_size: 4", "answers_words: null", "answers_words: expected a whole number of at least 1"),
        ("batch_size: 4", "teacher_verbalizers: nowhere", "nowhere"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_2(run_folder, capsys, old, new, said):
    file = run_folder / "run.yaml"
    text = file.read_text().replace("  betas: [0.9, 0.98]\n", "")
    file.write_text(text.replace(old, new))
    assert call("run", file) == 2
    assert said in one_line_error(capsys)
    assert not (run_folder / "out").exists()


def test_preset_targets_and_layers_exclude_each_other(run_folder, capsys):
    file = run_folder / "run.yaml"
    text = file.read_text()
    file.write_text(text.replace("batch_size: 4", "targets: every_layer") + "  student_targets: [1]\n")
    assert call("run", file) == 2
    assert "targets: expected a preset or layers" in one_line_error(capsys)
    file.write_text(text.replace("batch_size: 4", "targets: every_layer"))
    assert call("run", file, "--json") == 0
    assert list(verify(run_folder / "out").manifest.distillation.student_layers) == [1, 2]


def test_a_teacher_with_its_verbalizers_whose_answers_are_kept(run_folder, capsys):
    assert call("run", run_folder / "run.yaml") == 0
    text = (run_folder / "run.yaml").read_text().replace("out: out", "out: again")
    text = text.replace("verbalizers_out: verbalizers", "teacher_verbalizers: verbalizers/teacher")
    text = text.replace("checkpoint_dir: checkpoints", "answers_dir: answers\nanswers_words: 4")
    (run_folder / "again.yaml").write_text(text)
    capsys.readouterr()
    assert call("run", run_folder / "again.yaml", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert "verbalization_teacher" not in printed["last_losses_nats"]
    assert len(list((run_folder / "answers").rglob("*.safetensors"))) == 2
    bias = json.loads((run_folder / "again" / "truncation.json").read_text())
    assert bias["k"] == 4
    assert 0 <= bias["last_bias_nats"] <= bias["last_full_nats"]
    assert verify(run_folder / "again").manifest.metrics["truncation_last_bias_nats"] == bias["last_bias_nats"]


def test_bench_times_both_kinds_of_step_and_writes_nothing(run_folder, capsys):
    before = sorted(run_folder.iterdir())
    assert call("bench", run_folder / "run.yaml", "--steps", 1, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ratio"] == pytest.approx(printed["interaction_ms"] / printed["last_layer_ms"])
    assert 0 < printed["response_share"] < 0.5
    assert call("bench", run_folder / "run.yaml", "--steps", 1) == 0
    assert "times as long" in capsys.readouterr().out
    assert sorted(run_folder.iterdir()) == before


def test_processes_of_torchrun_share_a_run(run_folder, capsys):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--no-python", str(Path(sys.executable).with_name("verbdistill")), "run", str(run_folder / "run.yaml")]
    started = subprocess.Popen(
        [*command, "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed, said = started.communicate(timeout=150)
    finally:
        # It passes on to its processes what asks it to end.
        started.terminate()
        started.wait()
    assert started.returncode == 0, said[-3000:]
    shared = json.loads(printed)
    (run_folder / "out").rename(run_folder / "shared")
    for name in ("verbalizers", "checkpoints"):
        shutil.rmtree(run_folder / name)
    assert call("run", run_folder / "run.yaml", "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert shared["last_losses_nats"] == pytest.approx(alone["last_losses_nats"], rel=1e-4)


def test_missing_or_odd_configuration_files(tmp_path, capsys):
    assert call("run", tmp_path / "none.yaml") == 2
    one_line_error(capsys)
    (tmp_path / "list.yaml").write_text("- 1")
    assert call("run", tmp_path / "list.yaml") == 2
    assert "expected a mapping, got list" in one_line_error(capsys)


def test_tokenizers_that_differ_are_refused(run_folder, processor, capsys):
    words = processor().tokenizer.convert_ids_to_tokens(range(12))
    words[6], words[7] = words[7], words[6]
    processor(words).save_pretrained(run_folder / "student")
    assert call("run", run_folder / "run.yaml") == 2
    assert "expected 'nw' at id 6" in one_line_error(capsys)


def test_match_reads_json_and_safetensors(tmp_path, capsys):
    rows = [[0.1, 3.0, 2.0, 1.0], [2.0, 1.0, 0.5, 0.1]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "named.json").write_text(json.dumps({"kld": rows}))
    save_file({"kld": torch.tensor(rows)}, tmp_path / "kld.safetensors")
    answers = []
    for name in ("rows.json", "named.json", "kld.safetensors"):
        assert call("match", "--kld", tmp_path / name, "--seed", 3, "--json") == 0
        answers.append(json.loads(capsys.readouterr().out)["teacher_targets"])
    assert answers[0] == answers[1] == answers[2]
    assert call("match", "--kld", tmp_path / "rows.json") == 0
    assert "student target 1 <- teacher target" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "[[1], [2]]", "[[NaN]]", '[["a"]]', "[[1, 2], [3]]", "null"])
def test_match_refuses_what_is_no_matrix(tmp_path, capsys, text):
    (tmp_path / "bad.json").write_text(text)
    assert call("match", "--kld", tmp_path / "bad.json", "--json") == 2
    one_line_error(capsys)
    assert call("match", "--kld", tmp_path / "none.safetensors") == 2
    one_line_error(capsys)
