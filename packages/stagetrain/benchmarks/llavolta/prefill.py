"""Time of a prefill at every setting of Table 4: what a user waits for the first token, the vision tower left out."""

import time
from collections.abc import Sequence
from statistics import median

import torch
from llavolta.arms import label
from llavolta.cells import Row
from transformers import DynamicCache

from stagetrain import CompressionSetting, attach
from stagetrain.loop.feature_cache import cache_vision_features
from stagetrain.timing.synthetic import SyntheticShape, synthetic_batch, synthetic_llava
from stagetrain.timing.wall_clock import FEATURE_BYTES

NUM_ROUNDS = 7


@torch.no_grad()
def time_prefills(settings: Sequence[CompressionSetting | None], num_layers: int) -> Row:
    """Seconds by setting, best and median of rounds in which all settings take turns.

    One image of 576 tokens with 64 of text, decoder 256 wide, random weights.
    """
    shape = SyntheticShape(num_layers=num_layers, batch=1)
    model = synthetic_llava(shape).eval()
    batch = synthetic_batch(shape)
    del batch["labels"]
    attachment = attach(model)
    times: dict[str, list[float]] = {label(setting): [] for setting in settings}
    with cache_vision_features(model, FEATURE_BYTES):
        for _ in range(NUM_ROUNDS + 1):
            for setting in settings:
                attachment.clear()
                if setting is not None:
                    attachment.set(setting)
                begin = time.perf_counter()
                model(**batch, past_key_values=DynamicCache(config=model.config.text_config), logits_to_keep=1)
                times[label(setting)].append(time.perf_counter() - begin)
    # The first round is a warm-up.
    return {name: {"min_s": min(each[1:]), "median_s": median(each[1:])} for name, each in times.items()}
