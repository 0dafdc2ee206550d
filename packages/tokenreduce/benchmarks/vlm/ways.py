"""One model's answers at every factor, and what each way to choose the factor makes of them."""

from typing import Any

from ranking import spearman
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from vlm.choices import (
    COSTS,
    NUM_CALIBRATION,
    Chooser,
    blind_shares,
    calibrated,
    dear_shares,
    oracle,
    shares_of,
    two_thresholds,
)
from vlm.evaluation import accuracies, at_choice, judge_factors
from vlm.statistics import statistics
from vlm.subject import Images
from vlm.training import IGNORED

# Models whose answers the ways are compared on.
JUDGED = ("plain", "random", "dfmr", "dfmr-12")
_RULES = ("threshold", "trade", "factors 1, 2", "two thresholds")
Row = dict[str, Any]


class Answers:
    """Which questions a model answers at every factor, on the val and the test split."""

    def __init__(self, model: LlavaForConditionalGeneration, images: dict[str, Images]) -> None:
        self._images = images
        self._right = {name: judge_factors(model, images[name]) for name in ("val", "test")}
        channel_std = images["train"].features[:NUM_CALIBRATION].flatten(0, 2).std(dim=0)
        self._losses = {name: statistics(each, channel_std) for name, each in images.items()}

    def ways(self, mean: int) -> Row:
        """Accuracy on val and test of every statistic under every rule, of blind mixtures and of the oracle."""
        row: Row = {}
        for name in self._losses["train"]:
            for rule in ("literal",) if name == "literal" else _RULES:
                chooser = self._chooser(name, rule, mean)
                row[f"{name}, {rule}"] = self._scores(
                    {split: chooser(self._losses[split][name]) for split in self._right}
                )
        row["best blind mixture"] = self._best_blind(mean)
        correct = (self._right["test"] & self._asked("test")).sum(dim=-1).T.float()
        row["oracle"] = self._scores({"test": oracle(correct, mean)})
        return row

    def _chooser(self, name: str, rule: str, mean: int) -> Chooser:
        losses = self._losses["train"][name][:NUM_CALIBRATION]
        if rule != "two thresholds":
            return calibrated(losses, mean, rule)
        # How dear and cheap images share the mean is the one thing found on answers, those of the val split.
        choosers = [two_thresholds(losses, mean, share) for share in dear_shares(mean)]
        return max(choosers, key=lambda chooser: self._accuracy("val", chooser(self._losses["val"][name])))

    def _best_blind(self, mean: int) -> Row:
        """The best shares, by the val split, of factors given to images at random; the expected accuracy."""
        asked = self._asked("val")
        shares = blind_shares([float(at.float()[asked].mean()) for at in self._right["val"]], mean)
        test = self._images["test"]
        right = sum(share * at.float() for share, at in zip(shares, self._right["test"], strict=True))
        assert isinstance(right, Tensor)  # a sum of tensors.
        return {"test": {"all": accuracies(right, test)["all"]}, "tokens": float(mean), "shares": shares}

    def _accuracy(self, split: str, indices: Tensor) -> float:
        return float(at_choice(self._right[split], indices)[self._asked(split)].float().mean())

    def _asked(self, split: str) -> Tensor:
        return self._images[split].questions.answers != IGNORED

    def _scores(self, chosen: dict[str, Tensor]) -> Row:
        row: Row = {split: {"all": self._accuracy(split, indices)} for split, indices in chosen.items()}
        costs, test = COSTS[chosen["test"]], self._images["test"].split
        return row | {
            "tokens": float(costs.mean()),
            "shares": shares_of(chosen["test"]),
            "with_num_shapes": spearman(costs.numpy(), test.num_shapes),
            "with_ground": spearman(costs.numpy(), test.grounds),
        }
