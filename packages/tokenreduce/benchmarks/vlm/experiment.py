"""All cells of one seed: its models' accuracy at every number of tokens, beside every rival, under every choice."""

from functools import cached_property

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from vlm.cells import Cells
from vlm.checking import attached_difference
from vlm.choices import COSTS, shares_of
from vlm.data import Split
from vlm.evaluation import accuracies, at_choice, judge, judge_factors, mean_tokens
from vlm.rivals import BLIND, POLICIES, SELECTIONS, at_factors, dfmr_indices, selected, training_policy
from vlm.subject import FACTORS, TOKENS, Images, Subject
from vlm.training import train_language
from vlm.ways import JUDGED, Answers

MEANS = (16, 24)
# Given every reducer, whether trained with it or not.
_GENERAL = ("plain", "random")
Row = dict[str, object]


class Experiment:
    """One seed; towers and models are trained when a cell first needs them and their files are not there."""

    def __init__(self, cells: Cells, splits: dict[str, Split], subject: Subject, num_steps: int) -> None:
        self._cells = cells
        self._splits = splits
        self._subject = subject
        self._num_steps = num_steps

    def measure(self) -> None:
        """Every cell that the file lacks."""
        cells, seed = self._cells, self._subject.seed
        for policy in POLICIES:
            cells.measure("own", self._table_1, policy, seed=seed, policy=policy)
        cells.measure("attach", self._attach, seed=seed)
        for mean in MEANS:
            for policy in (name for name in POLICIES if name != "literal"):
                cells.measure("rivals", self._rivals, policy, mean, seed=seed, policy=policy, mean=mean)
        for policy in JUDGED:
            for mean in MEANS:
                cells.measure("ways", self._ways, policy, mean, seed=seed, policy=policy, mean=mean)

    @cached_property
    def _images(self) -> dict[str, Images]:
        if not self._subject.has("base"):
            self._cells.record("tower", self._subject.prepare, self._splits, seed=self._subject.seed)
        return {name: self._subject.images(name, split) for name, split in self._splits.items()}

    def _model(self, policy: str) -> LlavaForConditionalGeneration:
        _ = self._images  # the tower comes first.
        if not self._subject.has(policy):
            self._cells.record("train", self._train, policy, seed=self._subject.seed, policy=policy)
        return self._subject.model(policy)

    def _train(self, policy: str) -> Row:
        model, train = self._subject.model(), self._images["train"]
        draw = training_policy(policy, train)
        losses = train_language(model, draw, train.questions, self._subject.seed, self._num_steps)
        self._subject.keep(model, policy)
        return {"losses": losses, "steps": self._num_steps}

    def _table_1(self, policy: str) -> Row:
        """Accuracy on the test split at every factor, and at the choice of DFMR in every form."""
        model, test = self._model(policy), self._images["test"]
        right = judge_factors(model, test)
        row: Row = {str(TOKENS[factor]): accuracies(right[index], test) for index, factor in enumerate(FACTORS)}
        for name in BLIND:
            for mean in MEANS:
                indices = dfmr_indices(test, self._images["train"], mean, name)
                row[f"{name} {mean}"] = accuracies(at_choice(right, indices), test) | {
                    "tokens": float(COSTS[indices].mean()),
                    "shares": shares_of(indices),
                }
        return row

    def _attach(self) -> Row:
        return attached_difference(self._model("dfmr"), self._images["test"])

    def _ways(self, policy: str, mean: int) -> Row:
        if self._judged[0] != policy:
            self._judged = (policy, Answers(self._model(policy), self._images))
        answers = self._judged[1]
        assert answers is not None  # made above.
        return answers.ways(mean)

    _judged: tuple[str, Answers | None] = ("", None)

    def _rivals(self, policy: str, mean: int) -> Row:
        """Every way to this mean number of tokens that the model knows, on the test split."""
        model, test = self._model(policy), self._images["test"]
        return {
            name: accuracies(judge(model, tokens, test), test) | {"tokens": mean_tokens(tokens)}
            for name, tokens in self._reduced(policy, mean).items()
        }

    def _reduced(self, policy: str, mean: int) -> dict[str, list[Tensor]]:
        """Name of a reducer -> tokens of every test image, for the reducers that a model of this policy is given."""
        test, everything = self._images["test"], torch.arange(len(self._images["test"]))
        made: dict[str, list[Tensor]] = {}
        wanted = {policy} if policy not in _GENERAL else {*POLICIES, *BLIND.values()}
        chosen = {name: dfmr_indices(test, self._images["train"], mean, name) for name in BLIND}
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(self._subject.seed))
        for name, blind in BLIND.items():
            if name in wanted:
                made[name] = at_factors(test.pooled, everything, chosen[name])
            if blind in wanted:
                made[blind] = at_factors(test.pooled, everything, chosen[name][order])
        if "downsampling" in wanted:
            made["downsampling"] = at_factors(test.downsampled, everything, chosen["dfmr"][order])
            made["downsampling, DFMR's factors"] = at_factors(test.downsampled, everything, chosen["dfmr"])
        for name in SELECTIONS.keys() & wanted:
            made[name] = selected(SELECTIONS[name], test, [mean] * len(test))
            made[f"{name}, DFMR's counts"] = selected(SELECTIONS[name], test, COSTS[chosen["dfmr"]].int().tolist())
        return made
