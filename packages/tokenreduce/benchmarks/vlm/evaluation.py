"""Which questions a model answers right, and what that comes to."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from vlm.data import GROUNDS
from vlm.subject import FACTORS, Images
from vlm.training import IGNORED, answer_logits

_BATCH = 100


@torch.no_grad()
def judge(model: LlavaForConditionalGeneration, tokens: Sequence[Tensor], images: Images) -> Tensor:
    """Whether each question is answered right; one [V, D] an image -> bool [N, Q]."""
    words, answers = images.questions.words, images.questions.answers
    right = torch.zeros(answers.shape, dtype=torch.bool)
    # Images of like length together: less padding.
    order = sorted(range(len(tokens)), key=lambda image: len(tokens[image]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        logits = answer_logits(model, [tokens[row] for row in rows], words[rows])
        right[rows] = logits.argmax(dim=-1) == answers[rows]
    return right


def judge_factors(model: LlavaForConditionalGeneration, images: Images) -> Tensor:
    """`judge` at every factor; bool [F, N, Q]."""
    return torch.stack([judge(model, images.pooled[factor], images) for factor in FACTORS])


def at_choice(right_FNQ: Tensor, indices_N: Tensor) -> Tensor:  # noqa: N803
    """Every image at its own factor; bool [N, Q]."""
    return right_FNQ[indices_N, torch.arange(len(indices_N))]


def accuracies(right: Tensor, images: Images) -> dict[str, float]:
    """Share of right answers: all, by kind of question, by number of shapes, by ground; right [N, Q], may be shares."""
    asked = images.questions.answers != IGNORED
    is_colour = images.questions.is_colour
    groups = {"all": asked, "presence": asked & ~is_colour, "colour": asked & is_colour}
    num_shapes = torch.from_numpy(images.split.num_shapes)[:, None]
    grounds = torch.from_numpy(np.asarray(images.split.grounds))[:, None]
    groups |= {f"{number} shapes": asked & (num_shapes == number) for number in range(1, 5)}
    groups |= {name: asked & (grounds == index) for index, name in enumerate(GROUNDS)}
    return {name: float(right[where].float().mean()) for name, where in groups.items()}


def mean_tokens(tokens: Sequence[Tensor]) -> float:
    return float(np.mean([len(each) for each in tokens]))
