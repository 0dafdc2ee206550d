"""A checkpoint with Qwen2.5-1.5B's shapes and random weights, in bfloat16, a shard for each layer: 3.1 GB.

    python benchmarks/make_qwen_shape.py OUT [--layers 28]

Weights are Gaussian with one in 256 drawn 4 times as wide, so that groups have the tails trained ones have.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INTERMEDIATE, NUM_HEADS, NUM_KV_HEADS, VOCABULARY = 1536, 8960, 12, 2, 151_936
KEY_WIDTH = HIDDEN // NUM_HEADS * NUM_KV_HEADS
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="A random checkpoint with Qwen2.5-1.5B's shapes.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    write_checkpoint(arguments.out, arguments.layers)


def write_checkpoint(out: Path, num_layers: int) -> None:
    """Writes the sharded model directory `out`, one shard after the other."""
    out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shards = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}]
    shards += [dict(layer_shapes(number)) for number in range(num_layers)]
    weight_map = {}
    num_bytes = 0
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {key: random_weight(shape, generator) for key, shape in shapes.items()}
        save_file(tensors, out / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    config = {**CONFIG, "num_hidden_layers": num_layers}
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def layer_shapes(number: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a decoder layer."""
    prefix = f"model.layers.{number}"
    for key, width in (("q", HIDDEN), ("k", KEY_WIDTH), ("v", KEY_WIDTH)):
        yield f"{prefix}.self_attn.{key}_proj.weight", (width, HIDDEN)
        yield f"{prefix}.self_attn.{key}_proj.bias", (width,)
    yield f"{prefix}.self_attn.o_proj.weight", (HIDDEN, HIDDEN)
    yield f"{prefix}.mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
    yield f"{prefix}.mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
    yield f"{prefix}.mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield f"{prefix}.input_layernorm.weight", (HIDDEN,)
    yield f"{prefix}.post_attention_layernorm.weight", (HIDDEN,)


def random_weight(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms near 1; the rest small with heavy tails."""
    weight = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return (1 + 0.1 * weight).to(torch.bfloat16)
    wide = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) == 0
    return weight.mul_(0.02).mul_(wide.mul(3.0).add_(1)).to(torch.bfloat16)


if __name__ == "__main__":
    main()
