"""What DFMR costs beside the vision encoder that feeds it; one JSON object on standard output.

Run: python benchmarks/dfmr_cost.py [--preset tiny|llava-1.5] [--batch-size N] [--repeats N] [--device cpu|cuda]
or with a trained model: --model DIR. Weights of the presets are random: time does not depend on them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlavaForConditionalGeneration

from tokenreduce import dfmr, sigma_per_factor

PRESETS: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "patch_size": 8,
        "image_size": 64,
    },
    # CLIP ViT-L/14 at 336 x 336, as LLaVA-1.5 and the paper use it.
    "llava-1.5": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 14,
        "image_size": 336,
    },
}


def median_ms(work: Callable[[], Any], repeats: int, device: str) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    # The first call warms up.
    return statistics.median(times[1:])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--model", help="directory of a Llava model; its vision tower is used instead of a preset")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.model:
        tower: Any = LlavaForConditionalGeneration.from_pretrained(options.model).model.vision_tower
    else:
        tower = CLIPVisionModel(CLIPVisionConfig(**PRESETS[options.preset]))
    tower = tower.eval().to(options.device)
    config = tower.config
    side = config.image_size // config.patch_size
    pixel_values = torch.randn(options.batch_size, 3, config.image_size, config.image_size, device=options.device)
    tokens = tower(pixel_values).last_hidden_state[:, -side * side :]
    features = tokens.unflatten(1, (side, side))
    encoder_ms = median_ms(lambda: tower(pixel_values), options.repeats, options.device)
    result: dict[str, Any] = {
        "model": options.model or options.preset,
        "device": options.device,
        "threads": options.threads,
        "batch_size": options.batch_size,
        "grid": [side, side],
        "encoder_ms": encoder_ms,
    }
    for mode in ("residual", "literal"):
        # A threshold nothing exceeds: the largest factor, so that pooling is timed as well.
        whole, sigma = (
            median_ms(work, max(options.repeats, 20), options.device)
            for work in (partial(dfmr, features, 1e3, mode=mode), partial(sigma_per_factor, features, mode=mode))
        )
        result[mode] = {"dfmr_ms": whole, "sigma_ms": sigma, "share_of_encoder": whole / encoder_ms}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
