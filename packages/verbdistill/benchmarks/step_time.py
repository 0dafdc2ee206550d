"""Time of one interaction step against one step of last-layer distillation, as JSON.

Both train the same student on the same batches; the difference is what verbalizers and matching cost.
Models are random, of the tiny size the demo uses: time does not depend on what they know.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from verbdistill import DistillConfig, Pair, Verbalizers, default_targets, interaction_loss, kl_loss, response_states

IMAGE_TOKEN, NUM_PATCHES = 1, 64


def make_llava(num_layers: int, vocab_size: int) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=160,
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


def make_batch(arguments: argparse.Namespace) -> dict[str, Tensor]:
    """Packed rows: the image, then questions of 8 tokens and answers, each seeing the image and itself."""
    segment = 8 + arguments.answer_tokens
    length = NUM_PATCHES + arguments.questions * segment
    ids = torch.randint(2, arguments.vocab_size, (arguments.images, length))
    ids[:, :NUM_PATCHES] = IMAGE_TOKEN
    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[:, :NUM_PATCHES] = True
    labels = torch.full_like(ids, -100)
    positions = torch.arange(length)
    for start in range(NUM_PATCHES, length, segment):
        end = start + segment
        mask[start:end, start:end] = True
        labels[:, start + 8 : end] = ids[:, start + 8 : end]
        positions[start:end] = NUM_PATCHES + torch.arange(segment)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(arguments.images, 3, 64, 64),
        "position_ids": positions.expand_as(ids).contiguous(),
        "attention_mask": (mask & torch.ones_like(mask).tril()).expand(arguments.images, 1, -1, -1),
        "labels": labels,
    }


def median_ms(
    steps: dict[str, Callable[[], Tensor]], student: LlavaForConditionalGeneration, repeats: int
) -> dict[str, float]:
    """Median time of each kind of step, forward and backward; in turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            student.zero_grad()
            step().backward()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "teacher-layers": 4,
        "student-layers": 2,
        "vocab-size": 64,
        "images": 16,
        "questions": 6,
        "answer-tokens": 2,
        "repeats": 10,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = make_llava(arguments.teacher_layers, arguments.vocab_size).eval()
    student = make_llava(arguments.student_layers, arguments.vocab_size)
    student.model.vision_tower.requires_grad_(False)
    verbalizers = [
        Verbalizers(model, default_targets(layers)).requires_grad_(False)
        for model, layers in ((teacher, arguments.teacher_layers), (student, arguments.student_layers))
    ]
    pair = Pair(
        teacher=teacher, student=student, teacher_verbalizers=verbalizers[0], student_verbalizers=verbalizers[1]
    )
    config = DistillConfig(num_verbalization_steps=0, num_interaction_steps=1, num_sft_steps=0)
    batch = make_batch(arguments)

    def interaction() -> Tensor:
        matched, last, _ = interaction_loss(pair, batch, config, 0)
        return matched + last

    def last_layer() -> Tensor:
        with torch.no_grad():
            theirs = response_states(teacher, batch, ())
        ours = response_states(student, batch, ())
        return kl_loss(teacher.lm_head, theirs.last, student.lm_head, ours.last, num_words=arguments.vocab_size)

    steps = {"interaction_ms": interaction, "last_layer_ms": last_layer}
    result = vars(arguments) | median_ms(steps, student, arguments.repeats)
    result["ratio"] = result["interaction_ms"] / result["last_layer_ms"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
