"""All cells of one seed: tower, one model a policy, and what each of them answers."""

import torch
from torch import Tensor

from vlm.cells import Cells
from vlm.checking import attached_difference
from vlm.choices import COSTS, NUM_CALIBRATION, blind_shares, calibrated, oracle, shares_of, statistics
from vlm.data import Split
from vlm.evaluation import accuracies, at_choice, judge, judge_factors, mean_tokens, rank_correlation
from vlm.rivals import POLICIES, SELECTIONS, at_factors, chosen_by_dfmr, dfmr_chooser, selected, training_policy
from vlm.subject import FACTORS, TOKENS, Images, Subject
from vlm.training import IGNORED, train_language

MEANS = (16, 24)
# Whose answers at every factor the ways of choosing are compared on.
_JUDGED = ("random", "dfmr", "plain")
Row = dict[str, object]


def measure_seed(cells: Cells, splits: dict[str, Split], subject: Subject, num_steps: int) -> None:
    seed = subject.seed
    if not subject.has("base"):
        cells.measure("tower", lambda: subject.prepare(splits), seed=seed)
    images = {name: subject.images(name, split) for name, split in splits.items()}
    for policy in POLICIES:
        if not subject.has(policy):
            cells.measure(
                "train", lambda: _train(subject, images["train"], policy, num_steps), seed=seed, policy=policy
            )
        cells.measure("own", lambda: _table_1(subject, policy, images), seed=seed, policy=policy)
    cells.measure("attach", lambda: attached_difference(subject.model("dfmr"), images), seed=seed)
    for mean in MEANS:
        for policy in dict.fromkeys(("plain", "random", *SELECTIONS, "downsampling", "blind", "dfmr")):
            cells.measure("rivals", lambda: _rivals(subject, policy, images, mean), seed=seed, policy=policy, mean=mean)
    for policy in _JUDGED:
        if not all(any(cells.of("choices", seed=seed, policy=policy, mean=mean)) for mean in MEANS):
            answers = _Answers(subject, policy, images)
            for mean in MEANS:
                cells.measure("choices", lambda: answers.choices(mean), seed=seed, policy=policy, mean=mean)


def _train(subject: Subject, train: Images, policy: str, num_steps: int) -> Row:
    model = subject.model()
    losses = train_language(model, training_policy(policy, train), train.questions, subject.seed, num_steps)
    subject.keep(model, policy)
    return {"losses": losses, "steps": num_steps}


def _table_1(subject: Subject, policy: str, images: dict[str, Images]) -> Row:
    """Accuracy on the test split at every factor, and at the choice of DFMR in both modes."""
    model, test = subject.model(policy), images["test"]
    right = judge_factors(model, test)
    row: Row = {str(TOKENS[factor]): accuracies(right[index], test) for index, factor in enumerate(FACTORS)}
    for mode in ("residual", "literal"):
        for mean in MEANS:
            indices = chosen_by_dfmr(test, dfmr_chooser(images["train"], mean, mode), mode)
            row[f"{mode} {mean}"] = accuracies(at_choice(right, indices), test) | {
                "tokens": float(COSTS[indices].mean()),
                "shares": shares_of(indices),
            }
    return row


def _rivals(subject: Subject, policy: str, images: dict[str, Images], mean: int) -> Row:
    """Every way to this mean number of tokens that the model can be given, on the test split."""
    model, test = subject.model(policy), images["test"]
    indices = chosen_by_dfmr(test, dfmr_chooser(images["train"], mean))
    counts = COSTS[indices].int().tolist()
    everything = torch.arange(len(test))
    # DFMR's own factors, given to other images.
    shuffled = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(subject.seed))]
    made = {
        "dfmr": at_factors(test.pooled, everything, indices),
        "blind": at_factors(test.pooled, everything, shuffled),
        "downsampling": at_factors(test.downsampled, everything, shuffled),
        "downsampling, DFMR's factors": at_factors(test.downsampled, everything, indices),
    }
    for name, rival in SELECTIONS.items():
        if policy in ("plain", "random", name):
            made[name] = selected(rival, test, [mean] * len(test))
            made[f"{name}, DFMR's counts"] = selected(rival, test, counts)
    wanted = made if policy in ("plain", "random") else {name: made[name] for name in made if name.startswith(policy)}
    return {
        name: accuracies(judge(model, tokens, test), test) | {"tokens": mean_tokens(tokens)}
        for name, tokens in wanted.items()
    }


class _Answers:
    """A model's answers at every factor, and what each way to choose makes of them."""

    def __init__(self, subject: Subject, policy: str, images: dict[str, Images]) -> None:
        model = subject.model(policy)
        self._images = images
        self._right = {name: judge_factors(model, images[name]) for name in ("val", "test")}
        channel_std = images["train"].features[:NUM_CALIBRATION].flatten(0, 2).std(dim=0)
        self._losses = {name: statistics(each, channel_std) for name, each in images.items()}

    def choices(self, mean: int) -> Row:
        """Accuracy on val and test of every statistic under every rule, of blind mixtures and of the oracle."""
        row: Row = {}
        for name, losses in self._losses["train"].items():
            for rule in ("literal",) if name == "literal" else ("threshold", "trade"):
                choose = calibrated(losses[:NUM_CALIBRATION], mean, rule)
                row[f"{name}, {rule}"] = self._scores(
                    {split: choose(self._losses[split][name]) for split in self._right}
                )
        scores = [float(at.float()[self._asked("val")].mean()) for at in self._right["val"]]
        shares = blind_shares(scores, mean)
        test = self._images["test"]
        expected = sum(share * right.float() for share, right in zip(shares, self._right["test"], strict=True))
        assert isinstance(expected, Tensor)  # the sum of a few tensors.
        row["best blind"] = {"test": accuracies(expected, test), "tokens": mean, "shares": shares}
        correct = (self._right["test"] & self._asked("test")).sum(dim=-1).T.float()
        row["oracle"] = self._scores({"test": oracle(correct, mean)})
        return row

    def _asked(self, split: str) -> Tensor:
        return self._images[split].questions.answers != IGNORED

    def _scores(self, chosen: dict[str, Tensor]) -> Row:
        row: Row = {
            split: accuracies(at_choice(self._right[split], indices), self._images[split])
            for split, indices in chosen.items()
        }
        indices, split = chosen["test"], self._images["test"].split
        return row | {
            "tokens": float(COSTS[indices].mean()),
            "shares": shares_of(indices),
            "with_num_shapes": rank_correlation(COSTS[indices].numpy(), split.num_shapes),
            "with_ground": rank_correlation(COSTS[indices].numpy(), split.grounds),
        }
