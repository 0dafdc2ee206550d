"""Half a checkpoint is no checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, LlamaForCausalLM

from edgevlm import ModelDirectoryError
from edgevlm.model.loading import load_part, load_strictly

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tiny, tmp_path):
    directory = tmp_path / "llm"
    LlamaForCausalLM(tiny.text_config()).save_pretrained(directory, max_shard_size="20KB")
    tiny.tokenizer().save_pretrained(directory)
    assert len(shards(directory)) > 2
    return directory


def shards(directory):
    return sorted(directory.glob("*.safetensors"))


def edited_shard(directory, change):
    path = shards(directory)[0]
    tensors = load_file(path)
    change(tensors, sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


def edited_json(directory, name, change):
    values = json.loads((directory / name).read_text())
    change(values)
    (directory / name).write_text(json.dumps(values))


DAMAGE = {
    "missing shard": lambda d: shards(d)[0].unlink(),
    "truncated shard": lambda d: shards(d)[0].write_bytes(shards(d)[0].read_bytes()[:-100]),
    "truncated header": lambda d: shards(d)[0].write_bytes(shards(d)[0].read_bytes()[:4]),
    "empty shard": lambda d: shards(d)[0].write_bytes(b""),
    "missing tensor": lambda d: edited_shard(d, lambda tensors, name: tensors.pop(name)),
    "other shape": lambda d: edited_shard(d, lambda tensors, name: tensors.update({name: torch.zeros(3, 5)})),
    "more layers": lambda d: edited_json(d, "config.json", lambda c: c.update(num_hidden_layers=3)),
    "no heads": lambda d: edited_json(d, "config.json", lambda c: c.update(num_attention_heads=0)),
    "broken index": lambda d: (d / INDEX).write_text("{"),
    "index of nothing": lambda d: (d / INDEX).write_text("[]"),
    "no config": lambda d: (d / "config.json").unlink(),
    "broken config": lambda d: (d / "config.json").write_text("{"),
    "unknown type": lambda d: edited_json(d, "config.json", lambda c: c.update(model_type="other")),
    "number as text": lambda d: edited_json(d, "config.json", lambda c: c.update(hidden_size="a")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_directories(sharded, damage):
    DAMAGE[damage](sharded)
    with pytest.raises(ModelDirectoryError, match="expected") as caught:
        load_strictly(AutoModelForCausalLM, sharded)
    assert str(caught.value).startswith(str(sharded))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(sharded):
    edited_json(sharded, "config.json", lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(ModelDirectoryError, match=r"for 9: model.layers.2.input_layernorm.weight, .*, \.\.\.$"):
        load_strictly(AutoModelForCausalLM, sharded)


def test_whole_directories(tiny, sharded, tmp_path):
    model = load_strictly(AutoModelForCausalLM, sharded, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert load_part(AutoTokenizer, sharded, "a tokenizer").pad_token == "<pad>"
    assert load_part(AutoConfig, sharded, "a configuration").model_type == "llama"
    for index, settings in enumerate(({}, {"compressor": "conv", "fusion": "none"}, {"num_fusion_layers": 2})):
        edge = tiny.edge(**settings)
        edge.save_pretrained(tmp_path / str(index), max_shard_size="50KB")
        loaded = load_strictly(AutoModelForImageTextToText, tmp_path / str(index))
        inputs = tiny.inputs(edge)
        assert torch.equal(loaded.eval()(**inputs).logits, edge(**inputs).logits)


def test_an_edge_model_without_its_connectors(tiny, tmp_path):
    tiny.edge("none").save_pretrained(tmp_path)
    edited_json(tmp_path, "config.json", lambda c: c.update(fusion="combined"))
    with pytest.raises(ModelDirectoryError, match=r"EdgeVlmForConditionalGeneration, .*model\.fusion\.cross\.0"):
        load_strictly(AutoModelForImageTextToText, tmp_path)


def test_no_directory(tmp_path):
    with pytest.raises(ModelDirectoryError, match="expected a directory with a tokenizer, found none"):
        load_part(AutoTokenizer, tmp_path / "none", "a tokenizer")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelDirectoryError, match="expected a tokenizer, got"):
        load_part(AutoTokenizer, tmp_path, "a tokenizer")
