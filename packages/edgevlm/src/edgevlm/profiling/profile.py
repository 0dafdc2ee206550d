"""What a model costs from its configuration alone: parameters, work of one prefill, bytes.

The paper's "GFLOPS" are giga multiply-accumulates of the linear layers in one prefill, and its "B"
parameters are units of 2^30; its formula gives the tables' figures and is followed here.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgevlm.errors import ModelInputError
from edgevlm.profiling.layouts import ImageSize, VisualLayout, visual_layout
from edgevlm.profiling.memory import WeightBytes, kv_cache_bytes, weight_bytes
from edgevlm.profiling.parts import HEAD, PARTS, part_of
from edgevlm.profiling.skeletons import meta_model
from edgevlm.profiling.work import linear_macs, product_macs

PAPER_IMAGE = ImageSize(width=640, height=480)


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Costs of one prefill of one image and some text.

    Attributes:
        layout: What the image becomes.
        num_text_tokens: Text tokens of the prompt, its template included.
        num_params: Tied ones once; an edge model's encoder without a pooling head.
        params_by_module: The same, by part.
        macs_linear: Multiply-accumulates of linear layers and convolutions, the head at every position and the
            fusion's decoder layer over visual and text tokens: the paper's way.
        macs_linear_as_run: The same of what this package runs; differs for the fusion decoder only.
        flops: Twice all multiply-accumulates, attention included, as run, head at every position.
        flops_by_module: The same, by part.
        flops_last_logits: `flops` with the head at the last position only, as serving runs it.
        flops_paper: `flops` with the fusion decoder the paper's way.
        weights: Bytes of the weights.
        kv_cache_bytes: Keys and values after the prompt in bfloat16, the fusion's included.
        kv_cache_bytes_per_token: Of each later token.
    """

    layout: VisualLayout
    num_text_tokens: int
    num_params: int
    params_by_module: dict[str, int]
    macs_linear: int
    macs_linear_as_run: int
    flops: int
    flops_by_module: dict[str, int]
    flops_last_logits: int
    flops_paper: int
    weights: WeightBytes
    kv_cache_bytes: int
    kv_cache_bytes_per_token: int


def profile(config: Any, *, num_text_tokens: int, image: ImageSize = PAPER_IMAGE) -> Profile:
    """Counts the model's layers on torch's meta device: no weights are made.

    Args:
        config: Of an edge model, Llava, Qwen2-VL, Qwen2.5-VL or InternVL.
        num_text_tokens: Of the prompt, its template included.
        image: Size of the one image before the model's own resizing.

    Raises:
        ModelInputError: num_text_tokens is below 1, or the model or image cannot be profiled.
    """
    if num_text_tokens < 1:
        raise ModelInputError(f"num_text_tokens: expected at least 1, got {num_text_tokens}")
    layout = visual_layout(config, image)
    model = meta_model(config)
    linear = linear_macs(model, config, layout, num_text_tokens, "as_run")
    linear_paper = linear_macs(model, config, layout, num_text_tokens, "paper")
    products = product_macs(model, config, layout, num_text_tokens, "as_run")
    products_paper = product_macs(model, config, layout, num_text_tokens, "paper")
    both = linear + products
    head = linear[HEAD]
    prompt_bytes, later_bytes = kv_cache_bytes(config, layout, num_text_tokens)
    return Profile(
        layout=layout, num_text_tokens=num_text_tokens,
        num_params=sum(parameter.numel() for parameter in model.parameters()),
        params_by_module=_params_by_part(model, config),
        macs_linear=linear_paper.total(), macs_linear_as_run=linear.total(),
        flops=2 * both.total(), flops_by_module={part: 2 * both[part] for part in PARTS if both[part]},
        flops_last_logits=2 * (both.total() - head + head // (layout.num_seen + num_text_tokens)),
        flops_paper=2 * (linear_paper + products_paper).total(),
        weights=weight_bytes(model, config), kv_cache_bytes=prompt_bytes, kv_cache_bytes_per_token=later_bytes,
    )  # fmt: skip


def _params_by_part(model: nn.Module, config: Any) -> dict[str, int]:
    """Tied weights count where they come first, with the word embeddings."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(config, name) or "other"] += parameter.numel()
    return dict(counts)
