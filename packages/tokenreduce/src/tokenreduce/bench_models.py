"""What `tokenreduce bench` times: encoders of random weights, encoders of a directory, whole models with prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, CLIPVisionConfig, CLIPVisionModel

from tokenreduce.encoders.images import check_pillow, open_image
from tokenreduce.encoders.loading import load_model
from tokenreduce.encoders.opening import open_encoder
from tokenreduce.encoders.patches import PatchEncoder
from tokenreduce.encoders.towers import TowerEncoder
from tokenreduce.errors import EncoderError, TokenReduceError
from tokenreduce.reducing import VisualGrid

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "patch_size": 8,
        "image_size": 64,
    },
    # CLIP ViT-L/14 at 336 x 336, as LLaVA-1.5 and the paper use it.
    "llava-1.5": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
        "image_size": 336,
    },
}


def preset_work(name: str, batch_size: int) -> Callable[[], list[VisualGrid]]:
    """Encodes a batch of noise with a preset's random weights: time does not depend on them.

    Raises:
        EncoderError: The preset is unknown.
    """
    if name not in PRESETS:
        raise EncoderError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**PRESETS[name])).eval()
    side = tower.config.image_size
    encoder = TowerEncoder(tower=tower, processor=None)
    inputs = {"pixel_values": torch.randn(batch_size, 3, side, side)}
    return lambda: [view for views in encoder.run(inputs) for view in views]


def encoder_work(name: str, paths: Sequence[Path]) -> Callable[[], list[VisualGrid]]:
    """Encodes all images together, already decoded and resized; errors as in `tokenreduce.encoders.opening`."""
    encoder: Any = open_encoder(name)
    if isinstance(encoder, PatchEncoder):
        raise EncoderError(f"--encoder: expected the directory of a model, got {name!r}, which costs nothing")
    inputs = encoder.prepare([open_image(path) for path in paths])
    return lambda: [view for views in encoder.run(inputs) for view in views]


def load_prompts(directory: Path, paths: Sequence[Path], text: str) -> tuple[Any, list[dict[str, Any]]]:
    """A directory's model, and the inputs of its forward for each image with the same text.

    Raises:
        EncoderError: The directory holds no model with a processor, or the processor cannot take an image.
        ExtraMissingError: Pillow is not installed.
        ImageError: A file is no whole image.
    """
    check_pillow()
    model = load_model(directory)
    try:
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
        prompt = f"{processor.image_token} {text}".rstrip()
        calls = []
        for path in paths:
            call = processor(images=[open_image(path)], text=[prompt], return_tensors="pt")
            calls.append({name: value for name, value in call.items() if isinstance(value, torch.Tensor)})
    except TokenReduceError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{directory}: expected a processor for images and text, got: {error}") from error
    return model, calls
