"""A loss with a part that is a mean over images, in micro-batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor, TrainingArguments

from stagetrain import ConversationCollator, SingleRecords, named_schedule, train
from stagetrain.errors import ConfigError
from stagetrain.loop.loss_shares import num_images, share_of_loss
from stagetrain.runs.loading import load_model_config
from stagetrain.runs.run_config import read_run_config
from vlmpress.data import Record, Turn

Make = Callable[..., Any]


class WithImages(LlavaForConditionalGeneration):
    """Adds a loss that depends on each image alone; with `images_only` it runs nothing else."""

    images_only = False

    def forward(self, input_ids: Any = None, pixel_values: Any = None, labels: Any = None, **more: Any) -> Any:
        auxiliary = None
        if pixel_values is not None and labels is not None:
            weight = self.model.multi_modal_projector.linear_1.weight.sum()
            auxiliary = (weight * pixel_values.mean((1, 2, 3)) - 0.5).square().mean()
        if self.images_only:
            loss = 0.0 * self.model.multi_modal_projector.linear_1.bias.sum() if auxiliary is None else auxiliary
            return {"loss": loss, "auxiliary_loss": auxiliary}
        output = super().forward(input_ids, pixel_values, labels=labels, **more)
        if auxiliary is not None:
            output["auxiliary_loss"] = auxiliary
            output["loss"] = output.loss + auxiliary
        return output


@pytest.fixture
def mixed(records: list[Record]) -> SingleRecords:
    """Answers of different length, some without an image."""
    made = []
    for index, record in enumerate(records[:12]):
        turn = Turn("what colour is this", " ".join(["red", "not", "blue"][: 1 + index % 3]))
        made.append(Record(str(index), () if index % 5 == 4 else record.images, (turn,)))
    return SingleRecords(made)


@pytest.mark.parametrize("images_only", [False, True])
def test_micro_batches_have_the_loss_of_the_whole_batch(
    tmp_path: Path, make_model: Make, processor: LlavaProcessor, mixed: SingleRecords, images_only: bool
) -> None:
    runs = []
    for size in (12, 3, 1):
        model = make_model(2)
        model.__class__ = WithImages
        model.images_only = images_only
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=12 // size,
            learning_rate=0.1,
            optim="sgd",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        result = train(model, mixed, ConversationCollator(processor, pack=False), named_schedule("plain", 2), args)
        runs.append((result.losses, model.model.multi_modal_projector.linear_1.weight))
    for losses, weight in runs[1:]:
        assert losses == pytest.approx(runs[0][0], rel=1e-5)
        assert torch.allclose(weight, runs[0][1], atol=1e-6)


def test_shares() -> None:
    loss, auxiliary = torch.tensor(3.0), torch.tensor(1.0)
    logits = torch.ones(2)
    # Two of 4 answers and one of 2 images: 2 of text, 1 of images.
    assert share_of_loss(loss, {"logits": logits, "auxiliary_loss": auxiliary}, 0.5, 0.5) == 1.5
    assert share_of_loss(loss, {"logits": logits, "auxiliary_loss": auxiliary}, 0.25, 1.0) == 0.5 + 1.0
    assert share_of_loss(loss, {"logits": logits}, 0.5, 0.0) == 1.5
    nothing = torch.tensor(torch.nan)
    assert share_of_loss(nothing, {"logits": logits}, 0, 0.0) == 0.0
    assert share_of_loss(nothing, {"logits": logits, "auxiliary_loss": auxiliary}, 0, 0.5) == 0.5
    assert share_of_loss(loss, {"logits": None}, 0, 0.0) == 0.0
    assert num_images({"pixel_values": torch.zeros(3, 3, 8, 8)}) == 3
    assert num_images({"input_ids": torch.zeros(1)}) == 0


def test_a_run_changes_fields_of_the_models_configuration(tmp_path: Path, make_model: Make) -> None:
    make_model(2).save_pretrained(tmp_path / "model")
    places = [f"model={tmp_path / 'model'}", "data.records=d.jsonl", "out=o"]

    def load(change: str) -> Any:
        return load_model_config(read_run_config("tiny", [*places, f"model_config={change}"]))

    assert load("{image_seq_length: 7}").image_seq_length == 7
    assert load("{}").image_seq_length == 576
    with pytest.raises(ConfigError, match="expected a field of LlavaConfig, got shape"):
        load("{shape: round}")
    with pytest.raises(ConfigError, match="override 'model_config="):
        load("{vision_feature_select_strategy: best}")
