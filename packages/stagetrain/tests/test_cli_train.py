import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import vlmpress.cli
from stagetrain import StageTrainError, cli_train
from stagetrain.cli import app
from vlmpress.data import DataError, Record, Turn, write_records

Make = Callable[..., Any]


def call(*arguments: object) -> int:
    return vlmpress.cli.run(app, (StageTrainError, DataError), [str(argument) for argument in arguments])


@pytest.fixture
def settings(tmp_path: Path, make_model: Make, make_processor: Make, records: list[Record]) -> list[str]:
    """Arguments of a small run of the tiny preset."""
    make_model(2, image_size=64).save_pretrained(tmp_path / "model")
    make_processor(64).save_pretrained(tmp_path / "model")
    folder = records[0].images[0].parent
    write_records(tmp_path / "data.jsonl", records, folder)
    return [
        "tiny",
        f"model={tmp_path / 'model'}",
        f"data.records={tmp_path / 'data.jsonl'}",
        f"data.images={folder}",
        f"out={tmp_path / 'out'}",
        "training.max_steps=4",
        "training.per_device_train_batch_size=2",
        "training.save_steps=2",
    ]


def test_it_tells_trains_and_writes_a_model_directory(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = call("train", *settings, "--json")
    printed = capsys.readouterr()
    assert code == 0, printed.err
    summary = json.loads(printed.out)
    assert (summary["steps"], summary["resumed_from_step"], summary["skipped"]) == (4, None, 0)
    assert len(summary["tokens_per_second"]) == 2
    assert "8 samples, 64 visual tokens an image" in printed.err
    rows = [line.split() for line in printed.err.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert rows[0][:7] == ["1", "2", "average", "1", "8", "72", "177.78"]
    assert rows[1][:7] == ["2", "2", "-", "-", "-", "128", "100.00"]
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(tmp_path / "out")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data.jsonl", "model", "out", "out-checkpoints"}
    assert call("train", *settings) == 2
    assert "override 'out=" in capsys.readouterr().err


def test_it_goes_on_after_ctrl_c(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = vlmpress.cli.Progress.update

    def interrupt(self: Any, done: int, total: int, note: str = "") -> None:
        progress(self, done, total, note)
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(vlmpress.cli.Progress, "update", interrupt)
    assert call("train", *settings) == 130
    printed = capsys.readouterr()
    assert "stage" in printed.out
    assert f"goes on from {tmp_path / 'out-checkpoints' / 'checkpoint-2'}" in printed.err
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert call("train", *settings, "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_from_step"] == 2


def test_a_model_that_stays_compressed_says_so(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stages = "schedule={stages: [{fraction: 1, layer: 1, stride: 4, compressor: random}]}"
    assert call("train", *settings, stages) == 0, capsys.readouterr().err
    saved = json.loads((tmp_path / "out" / "visual_compression.json").read_text(encoding="utf-8"))
    assert (saved["layer"], saved["stride"], saved["compressor"]) == (1, 4, "random")
    assert "4 steps, loss" in capsys.readouterr().out


def test_a_model_of_text_alone_trains(tmp_path: Path, processor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=20, pad_token_id=0, **sizes)).save_pretrained(tmp_path / "model")
    tokenizer = processor.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% if m.role == 'assistant' %}<eos> {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    write_records(tmp_path / "data.jsonl", [Record(str(i), (), (Turn("is it", "red"),)) for i in range(4)], tmp_path)
    arguments = [f"model={tmp_path / 'model'}", f"data.records={tmp_path / 'data.jsonl'}", f"out={tmp_path / 'out'}"]
    more = ["schedule=plain", "freeze=[]", "training.max_steps=2", "data.group_by_image=false"]
    assert call("train", "tiny", *arguments, *more) == 0, capsys.readouterr().err
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model=missing"], "override 'model=missing': model: expected a model directory"),
        (["data.records=missing.jsonl"], "expected a readable dataset"),
        (["data.split=test"], "of split test"),
        (["schedule=three"], "expected stages or one of"),
        (["training.learning_rate=fast"], "expected a number, got 'fast'"),
        (["schedule={stages: [{fraction: 1, layer: 2, stride: 2}]}"], "expected a layer below the decoder's 2, got 2"),
        (["schedule={stages: [{fraction: 1, layer: 1, stride: 65}]}"], "at most an image's 64 visual tokens, got 65"),
        (["schedule={stages: [{fraction: 1, trainable: [nothing]}]}"], "the beginning of a parameter's name, got 'not"),
        (
            ["freeze=[vision, language, connectors]"],
            "expected parameters that are not frozen to train, got none",
        ),
        (["collator.pack=true", "collator.image_position=random"], "collator: image_position random"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    capsys.readouterr()
    assert call("train", *settings, *changes) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out-checkpoints").glob("*"))


def test_help_names_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--help") == 0
    assert "llava_1_5_instruct" in capsys.readouterr().out.replace("\n", "")
    assert cli_train.train.__doc__
