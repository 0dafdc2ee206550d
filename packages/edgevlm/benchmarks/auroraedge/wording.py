"""Before any image: the language model learns to answer from words that stand where visual tokens will.

It is to these runs what pretraining on text is to real ones: binding a question's words to one of several things is
learned in seconds where each thing is one clean token, and in many minutes from patches.
"""

import random
import time
from typing import Any

import torch
from auroraedge.questions import GRID, Questions
from auroraedge.recipe import Recipe
from auroraedge.rows import Rows, draw
from torch import Tensor, nn

_WARMUP_STEPS, _RECENT = 30, 50


def learn_words(model: Any, ids: dict[str, int], questions: Questions, recipe: Recipe, seed: int) -> dict[str, float]:
    """Trains an edge model's language model in place until its loss is low; what it took and the loss at the end."""
    begin_s, source = time.process_time(), random.Random(f"words {seed}")
    generator = torch.Generator().manual_seed(seed)
    objects = questions.train.objects
    num_objects = next(iter(objects.values())).shape[1]
    rows, places = Rows(ids, num_objects), torch.linspace(0, GRID * GRID - 1, num_objects + 2)[1:-1].long()
    parameters = list(model.model.language_model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=recipe.words_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses: list[float] = []
    model.train()
    for step in range(recipe.words_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.words_rate * min(1.0, (step + 1) / _WARMUP_STEPS)
        chosen = torch.randint(len(questions.train), (recipe.images,), generator=generator)
        tokens = _tokens(model, ids, questions, chosen)
        # Without a fusion the features are not looked at.
        features = torch.zeros(len(chosen), GRID * GRID, model.config.vision_config.hidden_size)
        valid = torch.ones(features.shape[:2], dtype=torch.bool)
        images = model.model.image_output(features, valid, tokens=list(tokens), places=[places] * len(chosen))
        asked = [draw(questions.train.questions[row], recipe.questions, source) for row in chosen.tolist()]
        loss = model(**rows.batch(asked), mm_encoder_outputs={"image": images}, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        recent = losses[-_RECENT:]
        if len(recent) == _RECENT and sum(recent) / _RECENT < recipe.words_loss:
            break
    tail = losses[-_RECENT:]
    return {"cpu_s": time.process_time() - begin_s, "steps": len(losses), "loss": sum(tail) / len(tail)}


def _tokens(model: Any, ids: dict[str, int], questions: Questions, rows: Tensor) -> Tensor:
    """The sum of each object's words, [I, K, D]."""
    embeddings = model.get_input_embeddings().weight.detach()
    whole = torch.zeros(())
    for group, names in questions.words.items():
        numbers = questions.train.objects[group][rows]
        vectors = embeddings[[ids[name] for name in names]]
        whole = whole + vectors[numbers.clamp(min=0)] * (numbers >= 0)[..., None]
    return whole
