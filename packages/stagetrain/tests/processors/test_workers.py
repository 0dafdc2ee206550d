"""Worker processes decode the images and make the same batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from stagetrain import Batches, ConversationCollator, SingleRecords
from vlmpress.data import Record, open_records, write_records


@pytest.mark.parametrize("order", ["shuffled", "length", "modality_length"])
def test_workers_give_the_same_batches(
    family: Any, mixture: list[Record], pictures: list[Path], tmp_path: Path, order: Any
) -> None:
    broken = pictures[0].parent / "broken.png"
    broken.write_bytes(b"no image")
    records = [*mixture, Record("broken", (broken,), mixture[0].turns)]
    write_records(tmp_path / "data.jsonl", records, pictures[0].parent)
    samples = SingleRecords(open_records(tmp_path / "data.jsonl", pictures[0].parent))
    collator = ConversationCollator(family.processor, pack=False, image_position="random", pixel_cache_bytes=30_000)
    batches = Batches(samples, collator, 2, 7, 3, order)
    here = [batches[number] for number in range(7)]
    assert sum("skipped" in batch for batch in here) == 2
    workers = DataLoader(batches, batch_size=None, num_workers=2)
    for batch, expected in zip(workers, here, strict=True):
        assert batch.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value
