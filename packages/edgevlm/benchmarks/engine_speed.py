"""Time to first token and decode speed of the engine, beside Hugging Face's generate; prints one JSON object.

    python packages/edgevlm/benchmarks/engine_speed.py [--model DIR] [--tokens 32] [--repeats 10]

Without --model it times an edge model of the demo's size with random weights.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from edgevlm import Engine, build, prefill_macs

PROMPT = "what is the color of the shape"
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *sorted(set(PROMPT.split())), *(f"word{i}" for i in range(40))]


def random_engine() -> Engine:
    torch.manual_seed(0)
    shared = {"hidden_size": 64, "num_attention_heads": 4}
    vision = CLIPVisionModel(
        CLIPVisionConfig(**shared, num_hidden_layers=2, intermediate_size=128, patch_size=8, image_size=64)
    )
    text = LlamaForCausalLM(
        LlamaConfig(**shared, num_hidden_layers=4, intermediate_size=160, vocab_size=len(WORDS),
                    initializer_range=0.125, tie_word_embeddings=True, eos_token_id=3, pad_token_id=0)
    )  # fmt: skip
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", additional_special_tokens=["<image>"]
    )
    side = {"height": 64, "width": 64}
    return Engine(*build(vision, text, CLIPImageProcessorPil(size=side, crop_size=side), tokenizer,
                         num_compressed_tokens=16))  # fmt: skip


def timed_engine(engine: Engine, image: Image.Image, num_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, image preparation included, and per later token."""
    start_s = time.perf_counter()
    events = engine.generate(image, PROMPT, num_tokens)
    next(events)
    first_s = time.perf_counter()
    num_later = sum(1 for _ in events) - 1
    return first_s - start_s, (time.perf_counter() - first_s) / max(num_later, 1)


def timed_generate(engine: Engine, image: Image.Image, num_tokens: int) -> float:
    """Seconds per later token of Hugging Face's generate: the difference to generating one."""
    inputs = engine.prepare(image, PROMPT)
    settings = {"attention_mask": torch.ones_like(inputs["input_ids"]), "do_sample": False, "pad_token_id": 0}
    spent_s = []
    for limit in (1, num_tokens):
        start_s = time.perf_counter()
        output = engine.model.generate(**inputs, **settings, max_new_tokens=limit)
        spent_s.append(time.perf_counter() - start_s)
    num_later = output.shape[1] - inputs["input_ids"].shape[1] - 1
    return (spent_s[1] - spent_s[0]) / max(num_later, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    engine = random_engine() if arguments.model is None else Engine.load(arguments.model)
    image = Image.new("RGB", (64, 64), "red")
    timed_engine(engine, image, arguments.tokens)
    runs = [timed_engine(engine, image, arguments.tokens) for _ in range(arguments.repeats)]
    generate_s = statistics.median(
        timed_generate(engine, image, arguments.tokens) for _ in range(max(arguments.repeats // 2, 1))
    )
    first_ms = sorted(1e3 * first_s for first_s, _ in runs)
    print(json.dumps({
        "model_type": engine.model_type,
        "num_params": engine.num_params,
        "prefill_gmacs": prefill_macs(engine, image, PROMPT) / 1e9,
        "ttft_ms": {"median": statistics.median(first_ms), "p90": first_ms[int(0.9 * (len(first_ms) - 1))]},
        "decode_tokens_per_s": 1 / statistics.median(later_s for _, later_s in runs),
        "hf_generate_tokens_per_s": 1 / generate_s,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
