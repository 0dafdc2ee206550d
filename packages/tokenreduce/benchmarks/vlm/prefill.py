"""The pieces of a first token: vision tower, reducer, and the language model's prefill, each timed by itself."""

import time
from collections.abc import Callable, Iterable

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2Model

from tokenreduce import ReductionPolicy
from tokenreduce.families.attention import attention_layers, attention_received
from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.dfmr import DfmrReducer
from tokenreduce.reducers.fixed_pooling import FixedPooling
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.reducing import Reducer, VisualGrid

NUM_TEXT = 64
# One image at the paper's three sizes.
VISUAL_TOKENS = (576, 144, 64)
# One prompt of three images: none reduced, and each at a factor of its own.
THREE_IMAGES = {"three whole": 3 * 576, "three mixed": 576 + 144 + 64}
_SIDE, _CHANNELS, _KEPT = 24, 1024, 144
_TOWER = CLIPVisionConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    patch_size=14,
    image_size=336,
)
# Qwen2-1.5B but for its vocabulary: the first token's logits are one column, and embeddings are looked up.
_LANGUAGE = Qwen2Config(
    vocab_size=1024,
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
)


class Pieces:
    """Both models with random weights (time does not depend on them) and their inputs.

    The language model runs in bfloat16, the tower and what follows it in float32.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._tower = CLIPVisionModel(_TOWER).eval()
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        self._language = Qwen2Model(_LANGUAGE).eval()
        torch.set_default_dtype(previous)
        self._work = dict(self._all_work())
        for work in self._work.values():
            # Kernels are chosen and memory is taken at the first call.
            work()

    @torch.no_grad()
    def time_all(self) -> dict[str, float]:
        """Seconds of each piece, one after the other."""
        times = {}
        for name, work in self._work.items():
            begin = time.perf_counter()
            work()
            times[name] = time.perf_counter() - begin
        return times

    @torch.no_grad()
    def _all_work(self) -> Iterable[tuple[str, Callable[[], object]]]:
        for name, num_visual in [*((str(number), number) for number in VISUAL_TOKENS), *THREE_IMAGES.items()]:
            yield f"prefill {name}", self._prefill(num_visual)
        full = torch.randn(1, 3, 336, 336)
        yield "tower", lambda: self._tower(full)
        half = torch.randn(1, 3, 168, 168)
        yield "tower, half the side", lambda: self._tower(half, interpolate_pos_encoding=True)
        hidden = torch.randn(1, _SIDE * _SIDE + 1, _CHANNELS)
        layer = attention_layers(self._tower)[-2]
        yield "attention extraction", lambda: attention_received(layer, hidden, _SIDE * _SIDE)
        grid = VisualGrid(features=torch.randn(_SIDE, _SIDE, _CHANNELS), attention=torch.rand(_SIDE, _SIDE))
        for name, reducer in _reducers().items():
            yield name, lambda reducer=reducer: reducer.reduce([grid], rows=[0])

    def _prefill(self, num_visual: int) -> Callable[[], object]:
        embeds = torch.randn(1, num_visual + NUM_TEXT, _LANGUAGE.hidden_size, dtype=torch.bfloat16)
        return lambda: self._language(inputs_embeds=embeds, use_cache=True)


def _reducers() -> dict[str, Reducer]:
    """All of them leave 144 tokens."""
    return {
        # On noise sigma(2) is about 0.86 and sigma(3) about 0.94: factor 2.
        "dfmr": DfmrReducer(ReductionPolicy(tau=0.9)),
        "fixed pooling": FixedPooling(factor=2),
        "random drop": RandomDrop(num_tokens=_KEPT),
        "attention": AttentionSelection(num_dominant=122, num_contextual=22),
        "merging": TokenMerging(num_tokens=_KEPT),
    }
