"""Which tensors of a model are quantized, and which part of it they belong to: rules on names.

Names decide, not classes: what is on disk is named as the checkpoint's author saw it, and a rule
needs no code of the model. A tensor is a linear layer's weight when it has two dimensions, ends in
".weight" and is neither a table (embeddings, positions), a head, a norm nor a patch embedding.
"""

import re
from typing import Literal

Part = Literal["vision", "language", "other"]
PARTS: tuple[Part, ...] = ("vision", "language", "other")

_KEPT = re.compile(
    r"embed"  # token, position and patch embeddings, embed_out
    r"|(^|\.)(lm_head|wte|wpe|shared|position|positions|pos_emb)(\.|$)"
    r"|norm"
    r"|relative_\w*bias"
)
# Token tables and output heads; positions and patches are never quantized.
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|word_embeddings|tok_embeddings|wte|shared|lm_head|embed_out)\.weight$")
_VISION = re.compile(r"(^|[._])(vision|visual|image_encoder)([._]|$)")
_LANGUAGE = re.compile(
    r"(^|\.)(language_model|text_model|lm_head)(\.|$)"
    r"|^(model\.|transformer\.)?(layers|h|embed_tokens|wte|norm)\."
)


def is_linear_weight(name: str, shape: tuple[int, ...]) -> bool:
    """True for what a model's pack quantizes: weights [out, in] of linear layers."""
    return len(shape) == 2 and name.endswith(".weight") and _KEPT.search(name) is None


def is_embedding(name: str) -> bool:
    """True for the weights of a token embedding or of the output head."""
    return _EMBEDDING.search(name) is not None


def part_of(name: str) -> Part:
    """The part of a vision-language model a tensor belongs to; what joins the two is "other"."""
    if _VISION.search(name):
        return "vision"
    return "language" if _LANGUAGE.search(name) else "other"
