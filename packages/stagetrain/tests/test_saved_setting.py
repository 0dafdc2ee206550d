import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from stagetrain import CompressionSetting, attach
from stagetrain.attaching.saved_setting import (
    load_compression,
    plain_state,
    save_compression,
    saved_setting,
)
from stagetrain.compressors import COMPRESSORS
from stagetrain.errors import CompressionError
from vlmpress.artifact import COMPRESSION_FILE, COMPRESSION_WEIGHTS_FILE

MakeModel = Callable[..., Any]
IMAGE = 3


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.tensor([[4, *[IMAGE] * 4, 7, 8, 9], [5, *[IMAGE] * 4, 9, 8, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 16, 16)}


def setting_of(name: str) -> CompressionSetting:
    return CompressionSetting(layer=0 if name.startswith("q_former") else 1, stride=2, compressor=name)


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "q_former_base"])
def test_a_fresh_model_gives_the_same_logits(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    model = make_model(3)
    attachment = attach(model, seed=5)
    attachment.set(setting_of(name))
    with torch.no_grad():
        for parameter in attachment.module.parameters() if attachment.module is not None else ():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = model(**batch()).logits
    save_compression(tmp_path, attachment)
    weights = {COMPRESSION_WEIGHTS_FILE} if name == "q_former" else set()
    assert {path.name for path in tmp_path.iterdir()} == {COMPRESSION_FILE} | weights
    fresh = make_model(3)
    loaded = load_compression(fresh, tmp_path)
    assert loaded is not None
    assert (loaded.setting, loaded.seed) == (setting_of(name), 5)
    with torch.no_grad():
        assert torch.equal(fresh(**batch()).logits, expected)


def test_a_model_directory_holds_a_learned_compressor_once(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(3)
    attachment = attach(model)
    attachment.set(setting_of("q_former"))
    with torch.no_grad():
        expected = model(**batch()).logits
    model.save_pretrained(tmp_path, state_dict=plain_state(model))
    save_compression(tmp_path, attachment)
    fresh, told = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    load_compression(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**batch()).logits, expected)


def test_saving_again_replaces_everything(make_model: MakeModel, tmp_path: Path) -> None:
    attachment = attach(make_model(3))
    for name in ("q_former", "average"):
        attachment.set(setting_of(name))
        save_compression(tmp_path, attachment)
    assert [path.name for path in tmp_path.iterdir()] == [COMPRESSION_FILE]
    assert json.loads((tmp_path / COMPRESSION_FILE).read_text()) == {
        "format_version": 1,
        "layer": 1,
        "stride": 2,
        "compressor": "average",
        "seed": 0,
    }


def test_a_directory_without_the_file_has_no_compression(make_model: MakeModel, tmp_path: Path) -> None:
    assert saved_setting(tmp_path) is None
    assert load_compression(make_model(2), tmp_path) is None


def test_nothing_in_force_cannot_be_saved(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="in force"):
        save_compression(tmp_path, attach(make_model(2)))
    assert not list(tmp_path.iterdir())


GOOD: dict[str, Any] = {"format_version": 1, "layer": 1, "stride": 2, "compressor": "average", "seed": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON object"),
        ("[]", "got list"),
        ("\xff", "expected a JSON object"),
        (json.dumps({**GOOD, "extra": 1}), "expected an object of .*, got .*extra"),
        (json.dumps({"layer": 1}), "got layer"),
        (json.dumps({**GOOD, "layer": True}), "layer: expected int, got True"),
        (json.dumps({**GOOD, "stride": "2"}), "stride: expected int, got '2'"),
        (json.dumps({**GOOD, "stride": 0}), "stride of at least 1"),
        (json.dumps({**GOOD, "compressor": "max"}), "got 'max'"),
        (json.dumps({**GOOD, "format_version": 2}), "format_version: expected 1, got 2"),
        (json.dumps({**GOOD, "layer": 9}), "layer below 2, got 9"),
    ],
)
def test_a_damaged_setting_is_an_error_that_names_the_file(
    make_model: MakeModel, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / COMPRESSION_FILE).write_text(text, encoding="latin-1")
    model = make_model(2)
    with pytest.raises(CompressionError, match=message) as caught:
        load_compression(model, tmp_path)
    assert str(tmp_path / COMPRESSION_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("damage", ["missing", "cut", "of another model"])
def test_damaged_weights_are_an_error_and_leave_the_model_plain(
    make_model: MakeModel, tmp_path: Path, damage: str
) -> None:
    model = make_model(2, image_size=32 if damage == "of another model" else 16)
    attachment = attach(model)
    attachment.set(setting_of("q_former"))
    save_compression(tmp_path, attachment)
    weights = tmp_path / COMPRESSION_WEIGHTS_FILE
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    fresh = make_model(2)
    before = fresh(**batch()).logits
    with pytest.raises(CompressionError, match=COMPRESSION_WEIGHTS_FILE):
        load_compression(fresh, tmp_path)
    assert torch.equal(fresh(**batch()).logits, before)
    assert set(dict(fresh.named_parameters())) == set(dict(make_model(2).named_parameters()))
