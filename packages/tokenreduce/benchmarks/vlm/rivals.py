"""What each policy gives a model to see of an image: in training, and at an equal mean number of tokens in evaluation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountedReducer
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.sigma import sigma_per_factor
from vlm.choices import NUM_CALIBRATION, Chooser, calibrated, shares_of
from vlm.subject import FACTORS, Images
from vlm.training import Policy

# The mean number of tokens that policies of their own are trained at.
TRAINED_MEAN = 24
SELECTIONS: dict[str, CountedReducer] = {
    "random-drop": RandomDrop(num_tokens=1),
    "attention": AttentionSelection(),
    "merging": TokenMerging(num_tokens=1),
}
POLICIES = ("plain", "random", "dfmr", "literal", "blind", "downsampling", *SELECTIONS)


def dfmr_chooser(train: Images, mean_tokens: float, mode: str = "residual") -> Chooser:
    """tau calibrated on training images; takes sigma of every factor."""
    sigmas = sigma_per_factor(train.features[:NUM_CALIBRATION], FACTORS, mode)
    return calibrated(sigmas, mean_tokens, "literal" if mode == "literal" else "threshold")


def chosen_by_dfmr(images: Images, chooser: Chooser, mode: str = "residual") -> Tensor:
    return chooser(sigma_per_factor(images.features, FACTORS, mode))


def training_policy(name: str, train: Images) -> Policy:
    """The tokens of a step's images under one of POLICIES."""
    if name == "plain":
        return lambda rows, _: [train.pooled[1][row] for row in rows.tolist()]
    if name == "random-drop":
        return _fresh_drop(train)
    if name in SELECTIONS:
        kept = selected(SELECTIONS[name], train, [TRAINED_MEAN] * len(train))
        return lambda rows, _: [kept[row] for row in rows.tolist()]
    mode = "literal" if name == "literal" else "residual"
    indices = chosen_by_dfmr(train, dfmr_chooser(train, TRAINED_MEAN, mode), mode)
    if name in ("dfmr", "literal"):
        return lambda rows, _: at_factors(train.pooled, rows, indices[rows])
    # "random" is the paper's; the others draw DFMR's own factors for images they were not chosen for.
    shares = torch.tensor([1.0] * len(FACTORS) if name == "random" else shares_of(indices))
    tokens = train.downsampled if name == "downsampling" else train.pooled
    return lambda rows, draws: at_factors(tokens, rows, shares.multinomial(len(rows), True, generator=draws))


def at_factors(tokens: dict[int, list[Tensor]], rows: Tensor, indices: Tensor) -> list[Tensor]:
    return [tokens[FACTORS[index]][row] for row, index in zip(rows.tolist(), indices.tolist(), strict=True)]


def selected(rival: CountedReducer, images: Images, counts: Sequence[int]) -> list[Tensor]:
    return [left.tokens for left in rival.reduce_to(images.grids, counts)]


def _fresh_drop(train: Images) -> Policy:
    """Other tokens each time an image comes."""

    def policy(rows: Tensor, draws: torch.Generator) -> list[Tensor]:
        step = int(torch.randint(2**40, (), generator=draws))
        dropped = RandomDrop(num_tokens=TRAINED_MEAN).keyed(step=step)
        return [
            left.tokens for left in dropped.reduce([train.grids[row] for row in rows.tolist()], rows=range(len(rows)))
        ]

    return policy
