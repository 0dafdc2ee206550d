"""That a row built from cached features means what `attach` makes of the full model's own batch."""

import torch
from transformers import LlavaForConditionalGeneration
from vlm.model import BOS, IMAGE, as_pixel_values
from vlm.subject import TOKENS, Images
from vlm.training import answer_logits

from tokenreduce import ReductionPolicy, attach, detach, dfmr

_NUM_IMAGES = 12
_TAU = 0.3


@torch.no_grad()
def attached_difference(model: LlavaForConditionalGeneration, test: Images) -> dict[str, object]:
    """Largest difference of answer logits over some test images of different factors, packed and one by one."""
    words = test.questions.words[:_NUM_IMAGES]
    sigmas = dfmr(test.features[:_NUM_IMAGES], _TAU).sigmas
    # A threshold in the middle: images of different factors in one batch.
    policy = ReductionPolicy(tau=float(sigmas[:, 1:].median()))
    reduced = dfmr(test.features[:_NUM_IMAGES], policy.tau)
    expected = answer_logits(model, reduced.pooled, words)
    num_questions, num_words = words.shape[1:]
    pixel_values = as_pixel_values(torch.from_numpy(test.split.pixels[:_NUM_IMAGES]))
    prefix = torch.tensor([BOS, *[IMAGE] * TOKENS[1]]).expand(_NUM_IMAGES, -1)
    handle = attach(model, policy)
    differences = []
    for question in range(num_questions):
        input_ids = torch.cat([prefix, words[:, question]], dim=1)
        mask = torch.ones_like(input_ids)
        logits = model(input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values).logits
        assert handle.last_columns is not None  # this call had images.
        last = (handle.last_columns == input_ids.shape[1] - 1).int().argmax(dim=1)
        at_end = logits[torch.arange(_NUM_IMAGES), last]
        differences.append(float((at_end - expected[:, question]).abs().max()))
    tokens = list(handle.last_num_visual_tokens)
    detach(model)
    assert tokens == reduced.num_tokens
    return {
        "largest_difference": max(differences),
        "largest_logit": float(expected.abs().max()),
        "tokens": tokens,
        "num_rows": num_questions * _NUM_IMAGES,
        "words": num_words,
    }
