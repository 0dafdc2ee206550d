"""A pack as a model that runs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from quantpack import ModelMismatchError, NotAPackError, Scheme, load, pack, unpack
from vlmpress import artifact


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, 60, (2, 6), generator=generator)
    return {
        "input_ids": torch.cat([torch.full((2, 64), 3), words], dim=1),
        "pixel_values": torch.randn(2, 3, 64, 64, generator=generator),
    }


def test_model_equals_one_from_the_unpacked_weights(llava_dir: Path, llava_pack: Path, tmp_path: Path) -> None:
    model = load(llava_pack)
    assert isinstance(model, LlavaForConditionalGeneration)
    assert not model.training
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copyfile(llava_dir / "config.json", restored / "config.json")
    unpack(llava_pack, restored / "model.safetensors", torch.float32)
    expected = AutoModelForImageTextToText.from_pretrained(restored, dtype=torch.float32).eval()
    state, expected_state = model.state_dict(), expected.state_dict()
    assert state.keys() == expected_state.keys()
    for name, tensor in expected_state.items():
        assert torch.equal(state[name], tensor), name
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, expected(**batch()).logits)


def test_logits_stay_close_and_closer_with_finer_groups(llava_dir: Path, llava_pack: Path, tmp_path: Path) -> None:
    original = LlavaForConditionalGeneration.from_pretrained(llava_dir, dtype=torch.float32).eval()
    pack(llava_dir, tmp_path / "fine", Scheme(group_size=4))
    similarities = []
    with torch.no_grad():
        expected = original(**batch()).logits
        for directory in (llava_pack, tmp_path / "fine"):
            logits = load(directory)(**batch()).logits
            similarities.append(torch.nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0))
    # Random weights of this spread saturate six layers, so 4 bits show; trained ones suffer less.
    assert 0.9 < similarities[0] < similarities[1]
    assert 0.98 < similarities[1] < 1.0


def test_the_entry_point_finds_it(llava_pack: Path) -> None:
    loader = artifact.quantized_loader(llava_pack)
    assert loader is not None
    model = loader()
    generated = model.generate(**batch(), max_new_tokens=2, do_sample=False)
    assert generated.shape == (2, 72)


def test_dtype_is_as_asked(llava_pack: Path) -> None:
    assert {tensor.dtype for tensor in load(llava_pack, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_loading_is_silent_about_weights(llava_pack: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(llava_pack)
    assert not caplog.records


def test_causal_language_models_load_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        vocab_size=40, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "pack", Scheme(granularity="channel", symmetric=True))
    model = load(tmp_path / "pack")
    assert isinstance(model, Qwen2ForCausalLM)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_repeated_tied_weights_load(llava_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    shutil.copyfile(llava_dir / "config.json", source / "config.json")
    tensors = load_file(llava_dir / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    pack(source, tmp_path / "pack", Scheme())
    model = load(tmp_path / "pack")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("multi_modal_projector.linear_1.bias"), "missing keys: .*linear_1.bias"),
        (lambda tensors: tensors.update(stray=torch.zeros(2)), "unexpected keys: stray"),
        (lambda tensors: tensors.update({"multi_modal_projector.linear_1.bias": torch.zeros(2)}), "expected the model"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_the_model_are_refused(
    llava_dir: Path, tmp_path: Path, change: Change, message: str
) -> None:
    source = tmp_path / "model"
    source.mkdir()
    shutil.copyfile(llava_dir / "config.json", source / "config.json")
    tensors = load_file(llava_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")
    pack(source, tmp_path / "pack", Scheme())
    with pytest.raises(ModelMismatchError, match=message):
        load(tmp_path / "pack")


def test_a_pack_of_a_plain_file_is_no_model(plain_pack: Path) -> None:
    with pytest.raises(NotAPackError, match="plain safetensors file"):
        load(plain_pack)
