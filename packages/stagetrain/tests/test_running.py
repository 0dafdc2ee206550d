"""A run from Python: what it writes, and where."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from stagetrain.loop.whole_weights import WholeWeights
from stagetrain.runs.run_config import read_run_config
from stagetrain.runs.running import PreparedRun, execute, prepare
from vlmpress.data import Record, write_records

Make = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, make_model: Make, make_processor: Make, records: list[Record]) -> PreparedRun:
    """Two steps of the tiny preset, into a folder that holds something."""
    make_model(2, image_size=64).save_pretrained(tmp_path / "model")
    make_processor(64).save_pretrained(tmp_path / "model")
    folder = records[0].images[0].parent
    write_records(tmp_path / "data.jsonl", records, folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    places = {"model": "model", "data.records": "data.jsonl", "data.images": folder, "out": "out"}
    changes = [f"{name}={tmp_path / path}" for name, path in places.items()]
    return prepare(read_run_config("tiny", [*changes, "training.max_steps=2", "training.save_strategy='no'"]))


class Steps(TrainerCallback):
    """Counts them."""

    count = 0

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        self.count += 1


def test_an_output_is_replaced_when_that_is_asked_for(run: PreparedRun) -> None:
    out, steps = run.config.out, Steps()
    execute(run, callbacks=[steps], overwrite=True)
    assert steps.count == 2
    assert not (out / "old").exists()
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in run.model.state_dict().items() if name in saved)
    assert [path.name for path in out.parent.glob(".*")] == []


def test_an_output_is_never_replaced_unasked(run: PreparedRun) -> None:
    with pytest.raises(OSError, match="not empty"):
        execute(run)
    assert [path.name for path in run.config.out.iterdir()] == ["old"]
    assert [path.name for path in run.config.out.parent.glob(".*")] == []


def test_the_whole_weights_are_what_the_model_saves(make_model: Make) -> None:
    """What FSDP needs a GPU for; that a gathered state is written like the model's own shows here."""
    model, whole = make_model(2), WholeWeights()
    unused: Any = None
    for fsdp in ([], ["full_shard"]):
        args: Any = SimpleNamespace(fsdp=fsdp)
        assert whole.weights is None
        whole.on_train_end(args, unused, unused, model=model)
    assert whole.weights is not None
    assert whole.weights.keys() == model.state_dict().keys()
