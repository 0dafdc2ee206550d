import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from quantpack import Scheme, pack
from vlmpress import artifact
from vlmpress.artifact.v1 import artifact_pb2

torch.set_num_threads(1)
COLORS = ("red", "green", "blue", "white")


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
def small_pack(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file({"w": torch.randn(3, 5), "b": torch.randn(3)}, tmp_path / "w.safetensors")
    pack(tmp_path / "w.safetensors", tmp_path / "small", Scheme(group_size=4))
    return tmp_path / "small"


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


TEMPLATE = (
    "{% for message in messages %}{{ '<user>' if message.role == 'user' else '<assistant>' }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{{ '</s>' if message.role == 'assistant' }}{% endfor %}{{ '<assistant>' if add_generation_prompt }}"
)


@pytest.fixture(scope="session")
def vqa_dir(llava: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a processor ("model"), and questions about images of one color ("vqa.jsonl")."""
    directory = tmp_path_factory.mktemp("vqa")
    words = ["<pad>", "<unk>", "</s>", "<image>", "<user>", "<assistant>", "which", "color", "is", "it", *COLORS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(words[:6])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        chat_template=TEMPLATE,
    )
    images = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    llava.save_pretrained(directory / "model")
    processor.save_pretrained(directory / "model")
    rows = []
    for number in range(24):
        color = COLORS[number % len(COLORS)]
        Image.new("RGB", (20 + number, 30), color).save(directory / f"{number}.png")
        split = "train" if number < 16 else "test"
        rows.append({"split": split, "image": f"{number}.png", "question": "which color is it", "answer": color})
    text = "\n".join(json.dumps(row) for row in rows)
    (directory / "vqa.jsonl").write_text(text, encoding="utf-8")
    return directory
