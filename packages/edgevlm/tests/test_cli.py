import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, CLIPConfig, CLIPModel, CLIPTextConfig, LlamaForCausalLM

import vlmpress.cli
from edgevlm import cli
from edgevlm.errors import EdgeVlmError
from vlmpress.artifact import ArtifactError


def run(*arguments):
    return vlmpress.cli.run(cli.app, (EdgeVlmError, ArtifactError), [str(argument) for argument in arguments])


@pytest.fixture
def parts(tiny, tmp_path):
    text_tower = CLIPTextConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    whole = CLIPConfig(text_config=text_tower.to_dict(), vision_config=tiny.vision_config().to_dict())
    CLIPModel(whole).save_pretrained(tmp_path / "clip")
    tiny.clip_image_processor().save_pretrained(tmp_path / "clip")
    LlamaForCausalLM(tiny.text_config()).save_pretrained(tmp_path / "llm")
    tiny.tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "clip", tmp_path / "llm"


@pytest.fixture
def picture(tiny, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(tiny.encoded(tiny.image()))
    return path


def test_build_then_chat(parts, picture, tmp_path, capsys):
    out = tmp_path / "edge"
    build = ("build", "--vision", parts[0], "--llm", parts[1], "--out", out, "--compressed-tokens", 4)
    assert run(*build) == 0
    model = AutoModelForImageTextToText.from_pretrained(out)
    source = CLIPModel.from_pretrained(parts[0]).vision_model
    assert torch.equal(
        model.model.vision_tower.embeddings.patch_embedding.weight, source.embeddings.patch_embedding.weight
    )
    capsys.readouterr()
    chat = ("chat", out, picture, "--prompt", "what is the shape", "--max-new-tokens", 5)
    assert run(*chat, "--json") == 0
    finish = json.loads(capsys.readouterr().out)
    assert finish["num_visual_tokens"] == 4
    assert run(*chat) == 0
    assert capsys.readouterr().out == finish["text"] + "\n"
    assert run("chat", out, "--prompt", "what is the shape") == 0
    capsys.readouterr()
    assert run(*chat, "--json", "--max-visual-tokens", 4) == 0
    assert json.loads(capsys.readouterr().out) == finish
    assert run(*chat, "--max-visual-tokens", 3) == 2
    assert "max_visual_tokens: expected at least 4, which the image needs" in capsys.readouterr().err
    assert run(*build) == 2
    assert capsys.readouterr().err == f"error: {out}: expected a new directory, found one\n"


def test_build_without_a_compressor(parts, picture, tmp_path, capsys):
    out = tmp_path / "edge"
    build = ("build", "--vision", parts[0], "--llm", parts[1], "--compressor", "none")
    assert run(*build, "--out", out) == 0
    capsys.readouterr()
    assert run("chat", out, picture, "--prompt", "what is the shape", "--max-new-tokens", 1, "--json") == 0
    num_patches = AutoModelForImageTextToText.from_pretrained(out).config.num_visual_tokens
    assert json.loads(capsys.readouterr().out)["num_visual_tokens"] == num_patches
    assert run(*build, "--out", tmp_path / "other", "--compressed-tokens", 4) == 2
    assert "without a compressor, got 4" in capsys.readouterr().err


def test_nothing_half_written(parts, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert (
        run("build", "--vision", parts[0], "--llm", parts[1], "--out", tmp_path / "x", "--compressed-tokens", 99) == 2
    )
    assert "num_compressed_tokens: expected 1 to 16, got 99" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("arguments", [
    ("chat", "{tmp}/none"),
    ("chat", "{tmp}/llm", "{tmp}/none.png"),
    ("chat", "{tmp}/llm", "{tmp}/llm/config.json"),
    ("chat", "{tmp}/clip", "--max-new-tokens", "0"),
    ("chat", "{tmp}/clip", "--max-visual-tokens", "0"),
    ("build", "--vision", "{tmp}/clip", "--llm", "{tmp}/llm", "--out", "{tmp}/o", "--compressor", "other"),
    ("build", "--vision", "{tmp}/llm", "--llm", "{tmp}/llm", "--out", "{tmp}/o"),
    ("build", "--vision", "{tmp}/clip", "--llm", "{tmp}/clip", "--out", "{tmp}/o"),
    ("build", "--vision", "{tmp}/none", "--llm", "{tmp}/llm", "--out", "{tmp}/o"),
    ("profile", "--fusion", "other"),
    ("unknown",),
])  # fmt: skip
def test_bad_input_is_one_line(parts, tmp_path, arguments, capfd):
    assert run(*(argument.format(tmp=tmp_path) for argument in arguments)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "unexpected" not in lines[0]


def test_profile(capsys):
    assert run("profile", "--preset", "auroraedge-v-2b", "--fusion", "cross", "--json") == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["gmacs_linear"] == pytest.approx(250.5, abs=0.05)
    assert counted["params"] / 2**30 == pytest.approx(1.852, abs=0.0005)
    assert run("profile") == 0
    assert "263.8" in capsys.readouterr().out
