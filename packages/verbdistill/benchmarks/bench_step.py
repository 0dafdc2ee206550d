"""Time of an interaction step against a step of last-layer distillation, whole optimizer steps, as JSON and Markdown.

Both train the same student on the same batches; the difference is what verbalizers and matching cost. Models are
random: time does not depend on what they know. CPU time of one thread, so that a busy machine counts little.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from verbdistill import DistillConfig
from verbdistill.runs.timing import StepTimes, step_times

IMAGE_TOKEN, NUM_PATCHES = 1, 64


def make_llava(num_layers: int, sizes: argparse.Namespace) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=sizes.words,
        hidden_size=sizes.hidden,
        intermediate_size=5 * sizes.hidden // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        initializer_range=0.125,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def make_batch(sizes: argparse.Namespace, share: float) -> dict[str, Tensor]:
    """Rows of an image and text; of all tokens `share` are response tokens, at the end: of 1, all of the text."""
    length = NUM_PATCHES + sizes.text
    ids = torch.randint(2, sizes.words, (sizes.rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, :NUM_PATCHES] = IMAGE_TOKEN
    labels = torch.full_like(ids, -100)
    first = max(NUM_PATCHES, length - round(share * length))
    labels[:, first:] = ids[:, first:]
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(sizes.rows, 3, 64, 64),
        "position_ids": torch.arange(length).expand_as(ids).contiguous(),
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
    }


def measure(sizes: argparse.Namespace, share: float) -> StepTimes:
    """Of a fresh pair."""
    torch.manual_seed(0)
    teacher, student = make_llava(sizes.teacher_layers, sizes), make_llava(sizes.student_layers, sizes)
    batch = make_batch(sizes, share)
    config = DistillConfig(num_verbalization_steps=0, num_interaction_steps=1, num_sft_steps=0, lora_rank=None)
    return step_times(teacher, student, lambda _index: batch, config, num_steps=sizes.steps, clock_s=time.process_time)


def rows(sizes: argparse.Namespace) -> Iterator[dict[str, object]]:
    for name, share in (("1/4", 0.25), ("1/2", 0.5), ("all text", 1.0)):
        times = measure(sizes, share)
        yield {
            "response": name,
            "last_layer_ms": round(times.last_layer_ms, 1),
            "interaction_ms": round(times.interaction_ms, 1),
            "ratio": round(times.ratio, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "teacher-layers": 8,
        "student-layers": 4,
        "hidden": 256,
        "words": 4096,
        "rows": 2,
        "text": 192,
        "steps": 3,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| response tokens | last-layer step | interaction step | ratio |", "|---|---|---|---|"]
    for row in rows(sizes):
        sys.stdout.write(json.dumps({**vars(sizes), **row}) + "\n")
        lines.append(f"| {row['response']} | {row['last_layer_ms']} ms | {row['interaction_ms']} ms | {row['ratio']} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
