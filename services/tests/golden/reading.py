"""What a reader finds in a packed edge model."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edgevlm import Engine
from quantpack import unpack
from vlmpress.artifact import verify

PROMPT = "is it a circle ?"


def read_pack(folder: Path) -> dict[str, Any]:
    """Digest of the artifact, SHA-256 of each unpacked float32 weight, logits behind a question without an image."""
    with tempfile.TemporaryDirectory() as plain:
        weights = load_file(unpack(folder, Path(plain) / "plain.safetensors", torch.float32))
    engine = Engine.load(folder)
    with torch.no_grad():
        logits = engine.model(**engine.prepare(None, PROMPT)).logits[0, -1]
    return {
        "digest": verify(folder).digest,
        "weights": {name: hashlib.sha256(weight.numpy()).hexdigest() for name, weight in sorted(weights.items())},
        "logits": [round(value, 5) for value in logits.tolist()],
    }
