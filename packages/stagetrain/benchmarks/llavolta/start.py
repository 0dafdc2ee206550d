"""Where a seed's runs start from: a directory of a model with a trained vision tower, made once and reused.

What LLaVA's instruction tuning starts from: a pretrained tower, and a language model that has learned something.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from llavolta.fitting import fit
from llavolta.questions import Questions
from llavolta.recipe import Recipe
from llavolta.tiny import Shape, build_model, build_processor
from llavolta.tower import open_answers, train_tower

from stagetrain import ConversationCollator, ImageGroups, named_schedule
from stagetrain.loop.feature_cache import cache_vision_features
from stagetrain.samples.images import read_image

MEMORY_BYTES = 1 << 30


def make_start(directory: Path, questions: Questions, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Trains tower and language model and writes them; what came of it.

    There is a directory only when all of it is written.
    """
    shape = Shape(num_layers=recipe.num_layers)
    processor = build_processor(questions.train, shape)
    model = build_model(processor, shape, seed)
    groups, _ = questions.groups
    report = {"tower_loss": _pretrain(model.model.vision_tower, groups, processor, recipe, seed)}
    model.model.vision_tower.requires_grad_(False)
    if recipe.start_steps:
        collator = ConversationCollator(processor, recipe.questions, seed=seed)
        plain = named_schedule("plain", recipe.num_layers)
        # Runs must not begin with the very batches that this one began with.
        run = {"seed": 1000 + seed, "num_steps": recipe.start_steps, "batch": recipe.images}
        with cache_vision_features(model, MEMORY_BYTES):
            report |= fit(model, groups, collator, plain, recipe, **run, until_loss=recipe.start_loss)[1]
    draft = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    (draft / "recipe.json").write_text(json.dumps(recipe.as_json()), encoding="utf-8")
    draft.rename(directory)
    return report


def _pretrain(tower: Any, groups: ImageGroups, processor: Any, recipe: Recipe, seed: int) -> float:
    answers = open_answers(groups)
    known = answers.sum(1).nonzero()[:, 0].tolist()
    images = [read_image(groups[index].images[0]) for index in known]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    return train_tower(tower, pixels, answers[known], recipe.tower_steps, seed)
