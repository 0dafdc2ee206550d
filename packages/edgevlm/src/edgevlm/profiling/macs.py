"""Work of one prefill, measured on a running model as torch's own counter counts it."""

from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from edgevlm.serving.engine import Engine
from edgevlm.serving.prefilling import prefill_row


def prefill_macs(engine: Engine, image: bytes | Image.Image | None, prompt: str) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention in one prefill of this request.

    Counted as torch's FlopCounterMode counts (two FLOPs each), on the last position's logits only,
    so a model pays for its head once. Norms, activations, rotary tables and a pack's decompression
    are not counted.
    """
    inputs: dict[str, Any] = engine.prepare(image, prompt)
    with _counter() as counter:
        prefill_row(engine.model, inputs)
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def forward_flops(model: Any, inputs: dict[str, Any]) -> int:
    """FLOPs of one forward of any model with logits at every position, by torch's FlopCounterMode."""
    with _counter() as counter:
        model(**inputs, use_cache=True)
    return int(counter.get_total_flops())


def _counter() -> FlopCounterMode:
    # torch has no count for the attention kernel it uses on CPU.
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    return FlopCounterMode(display=False, custom_mapping=kernels)


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return int(sdpa_flop_count(query, key, value))
