import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from quantpack import Scheme, pack
from vlmpress import artifact
from vlmpress.artifact.v1 import artifact_pb2

torch.set_num_threads(1)


def build_llava(num_layers: int = 4) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        patch_size=8,
        image_size=64,
        intermediate_size=256,
        projection_dim=64,
        initializer_range=0.06,
    )
    text = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=160,
        vocab_size=60,
        tie_word_embeddings=True,
        initializer_range=0.125,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-1, tie_word_embeddings=True
    )
    return LlavaForConditionalGeneration(config).to(torch.bfloat16).eval()


@pytest.fixture(scope="session")
def llava() -> LlavaForConditionalGeneration:
    return build_llava()


@pytest.fixture(scope="session")
def llava_dir(llava: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llava") / "model"
    llava.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(json.dumps({"words": "a few dozen"}), encoding="utf-8")
    (directory / "reduction_policy.json").write_text("{}", encoding="utf-8")
    (directory / "templates").mkdir()
    (directory / "templates" / "chat.jinja").write_text("{{ messages }}", encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def llava_pack(llava_dir: Path) -> Path:
    out = llava_dir.parent / "pack"
    pack(llava_dir, out, Scheme())
    return out


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "weights.safetensors"
    tensors = {
        "proj": torch.randn(5, 7),
        "half": torch.randn(4, 6).to(torch.bfloat16),
        "bias": torch.randn(5),
        "steps": torch.tensor(7),
        "mask": torch.ones(3, 2, dtype=torch.bool),
        "empty": torch.zeros(0, 3),
    }
    save_file(tensors, path)
    return path


@pytest.fixture
def plain_pack(plain_file: Path) -> Path:
    out = plain_file.parent / "pack"
    pack(plain_file, out, Scheme(granularity="group", group_size=3))
    return out


@pytest.fixture
def reseal() -> Callable[[Path], None]:
    """Writes manifest and digest again, as an attacker would, so that only the parsers stand in the way."""

    def apply(directory: Path) -> None:
        manifest = artifact.from_json_bytes((directory / "manifest.json").read_bytes())
        files = [
            artifact_pb2.File(
                path=file.path,
                sha256=artifact.digest_file(directory / file.path),
                size_bytes=(directory / file.path).stat().st_size,
            )
            for file in manifest.files
        ]
        del manifest.files[:]
        manifest.files.extend(files)
        data = artifact.to_json_bytes(manifest)
        (directory / "manifest.json").write_bytes(data)
        (directory / "manifest.sha256").write_text(f"{artifact.digest_bytes(data)}\n", encoding="ascii")

    return apply
