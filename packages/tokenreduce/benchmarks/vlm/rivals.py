"""What each policy gives a model to see of an image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from vlm.choices import NUM_CALIBRATION, calibrated, shares_of
from vlm.subject import FACTORS, Images
from vlm.training import Policy

from tokenreduce.reducers.attention_selection import AttentionSelection
from tokenreduce.reducers.counted import CountedReducer
from tokenreduce.reducers.random_drop import RandomDrop
from tokenreduce.reducers.token_merging import TokenMerging
from tokenreduce.sigma import sigma_per_factor

# The mean number of tokens that policies of their own are trained at.
TRAINED_MEAN = 24
SELECTIONS: dict[str, CountedReducer] = {
    "random-drop": RandomDrop(num_tokens=1),
    "attention": AttentionSelection(),
    "merging": TokenMerging(num_tokens=1),
}
# "-12": with factors 1 and 2 alone. "blind": DFMR's own factors, given to other images.
POLICIES = ("plain", "random", "dfmr", "literal", "blind", "downsampling", *SELECTIONS, "dfmr-12", "blind-12")
# DFMR's forms, each with its control.
BLIND = {"dfmr": "blind", "literal": "blind-literal", "dfmr-12": "blind-12"}
_RULES = {"dfmr": "threshold", "literal": "literal", "dfmr-12": "factors 1, 2"}


def dfmr_indices(images: Images, train: Images, mean_tokens: float, name: str = "dfmr") -> Tensor:
    """Index of each image's factor under "dfmr", "literal" or "dfmr-12"; tau calibrated on training images."""
    mode = "literal" if name == "literal" else "residual"
    calibration = sigma_per_factor(train.features[:NUM_CALIBRATION], FACTORS, mode)
    choose = calibrated(calibration, mean_tokens, _RULES[name])
    return choose(sigma_per_factor(images.features, FACTORS, mode))


def training_policy(name: str, train: Images) -> Policy:
    """The tokens of a step's images under one of POLICIES."""
    if name == "plain":
        return lambda rows, _: [train.pooled[1][row] for row in rows.tolist()]
    if name == "random-drop":
        return _fresh_drop(train)
    if name in SELECTIONS:
        kept = selected(SELECTIONS[name], train, [TRAINED_MEAN] * len(train))
        return lambda rows, _: [kept[row] for row in rows.tolist()]
    chooser = name if name in _RULES else "dfmr-12" if name == "blind-12" else "dfmr"
    indices = dfmr_indices(train, train, TRAINED_MEAN, chooser)
    if name in _RULES:
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
