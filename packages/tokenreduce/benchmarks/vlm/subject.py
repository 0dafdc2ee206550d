"""One seed's tower and what it makes of every image; kept in files, so that a stopped run goes on."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from vlm.data import Split, make_split
from vlm.model import build_model
from vlm.tower import encode, train_tower
from vlm.training import Questions, as_questions

from tokenreduce.dfmr import pool
from tokenreduce.reducing import VisualGrid

FACTORS = (1, 2, 3)
TOKENS = {1: 64, 2: 16, 3: 9}
_SPLITS = ("train", "val", "test")


class Images:
    """A split as one tower sees it.

    Args:
        split: Images and questions.
        views: features and attention of pixel factor 1; small2, small3: features of images of half and third side.
    """

    def __init__(self, split: Split, views: dict[str, Tensor]) -> None:
        self.split = split
        self.questions: Questions = as_questions(split)
        self.features = views["features"]
        self.attention = views["attention"]
        self._views = views

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def pooled(self) -> dict[int, list[Tensor]]:
        """Factor -> tokens of every image."""
        return {factor: pool(self.features, [factor] * len(self)) for factor in FACTORS}

    @cached_property
    def downsampled(self) -> dict[int, list[Tensor]]:
        """What the image's sides are divided by -> tokens of every image."""
        small = {factor: list(self._views[f"small{factor}"].flatten(1, 2)) for factor in (2, 3)}
        return {1: self.pooled[1], **small}

    @cached_property
    def grids(self) -> list[VisualGrid]:
        """What reducers take."""
        return [
            VisualGrid(features=features, attention=attention)
            for features, attention in zip(self.features, self.attention, strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """tower_file holds the weights of the whole untrained model and the trained tower."""

    seed: int
    folder: Path
    tower_steps: int

    def prepare(self, splits: dict[str, Split]) -> dict[str, float]:
        """Trains the tower and encodes every split; what came of it."""
        model = build_model(self.seed)
        accuracy = train_tower(model, splits["train"], self.seed, self.tower_steps)
        with torch.no_grad():
            for name in _SPLITS:
                features, attention = encode(model, splits[name])
                views = {"features": features, "attention": attention}
                views |= {f"small{factor}": encode(model, splits[name], factor)[0] for factor in (2, 3)}
                _save({key: value.contiguous() for key, value in views.items()}, self._file(name))
        _save(_weights(model), self._file("base"))
        return {"patch_accuracy": accuracy, "ground_patches": float((splits["test"].patches == 0).mean())}

    def model(self, trained: str = "base") -> LlavaForConditionalGeneration:
        """The model after its tower's training, or after all of it under the policy of this name."""
        model = build_model(self.seed)
        model.load_state_dict(load_file(self._file(trained)), strict=False)
        model.tie_weights()
        for parameter in model.model.vision_tower.parameters():
            parameter.requires_grad_(False)
        return model

    def keep(self, model: LlavaForConditionalGeneration, trained: str) -> None:
        """Writes the model's weights under the name of a policy."""
        _save(_weights(model), self._file(trained))

    def images(self, name: str, split: Split) -> Images:
        """The split of this name as `prepare` left it."""
        return Images(split, load_file(self._file(name)))

    def has(self, name: str) -> bool:
        """Whether the base, a policy's model or a split's features are there."""
        return self._file(name).exists()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}-{self.seed}.safetensors"


def make_splits() -> dict[str, Split]:
    return {name: make_split(name) for name in _SPLITS}


def _weights(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    # The head is the embedding itself.
    return {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file(tensors, draft)
    draft.replace(path)
