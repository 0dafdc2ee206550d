"""stagetrain's batches for edge models: what the edge model's processor makes, and what its model takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil

from edgevlm.model.processing import EdgeVlmProcessor
from stagetrain import ConversationCollator, ImageGroups, Sample
from vlmpress.data import Record, Turn, chat_messages
from vlmpress_services.pipeline.tiny_models import build_tokenizer

SIZES = ((48, 48), (60, 20), (20, 44))
TURNS = ((Turn("what is this", "red"),), (Turn("is it red", "yes"), Turn("or blue", "no")), (Turn("is it", "no"),))
PIXELS = {"clip": {"pixel_values"}, "siglip2": {"pixel_values", "pixel_attention_mask", "spatial_shapes"}}


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    made = [Record("text", (), TURNS[1])]
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        made += [Record(f"{number} {place}", (path,), turns) for place, turns in enumerate(TURNS)]
    return made


def make_processor(encoder: str, records: list[Record]) -> EdgeVlmProcessor:
    if encoder == "clip":
        images: Any = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    else:
        images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=36)
    tokenizer = build_tokenizer(records)
    return EdgeVlmProcessor(
        images, tokenizer, num_compressed_tokens=9, image_token="<image>", chat_template=tokenizer.chat_template
    )


@pytest.mark.parametrize("encoder", ["clip", "siglip2"])
def test_rows_are_what_the_processor_makes(records: list[Record], encoder: str) -> None:
    processor = make_processor(encoder, records)
    batch = ConversationCollator(processor)([Sample(one.images, (one,)) for one in records])
    texts = [
        processor.apply_chat_template(chat_messages(one.turns, len(one.images)), tokenize=False) for one in records
    ]
    images = [[Image.open(path) for path in one.images] for one in records if one.images]
    expected = processor(text=texts, images=images, return_tensors="pt", padding=True)
    assert {name for name in batch if name not in ("labels", "position_ids")} >= PIXELS[encoder] | {"input_ids"}
    for name in PIXELS[encoder] | {"input_ids", "attention_mask"}:
        assert torch.equal(batch[name], expected[name]), name


@pytest.mark.parametrize("encoder", ["clip", "siglip2"])
@pytest.mark.parametrize("fusion", ["none", "cross", "combined"])
def test_packed_questions_cost_what_each_costs_alone(
    edge_model: Any, records: list[Record], encoder: str, fusion: str
) -> None:
    model = edge_model(fusion, encoder, "contiguous")
    processor = make_processor(encoder, records)
    processor.num_compressed_tokens = model.config.num_compressed_tokens
    # The model's own token stands for an image; all others are words to it.
    swap = {processor.image_token_id: model.config.image_token_id}
    collator = ConversationCollator(processor)

    def summed(samples: list[Sample]) -> float:
        batch = collator(samples)
        batch["input_ids"].apply_(lambda token: swap.get(token, token))
        with torch.no_grad():
            return float(model(**batch).loss) * int((batch["labels"] != -100).sum())

    groups = list(ImageGroups(records))
    alone = sum(summed([Sample(one.images, (one,))]) for one in records)
    assert summed(groups) == pytest.approx(alone, rel=1e-4)
