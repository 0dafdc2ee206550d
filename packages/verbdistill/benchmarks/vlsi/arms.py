"""What is trained for the paper's tables.

Steps are shares of the recipe's: every arm at equal steps gives its student as many optimizer steps as every other.
"""

from dataclasses import dataclass, field
from typing import Any

from verbdistill.matching.strategies import STRATEGIES

TABLES = ("main", "4a", "4b", "4c", "4d", "4e", "4f")
MAIN = ("sft", "sft_cosine", "last_kd", "hidden_l2", "vlsi_without_sft", "vlsi")
RIVALS = ("sft", "last_kd", "hidden_l2")
EQUAL_TIME = "_equal_time"
"""A rival with as many steps as fit into the CPU time of the seed's vlsi, its verbalization included."""
BODIES = ("decoder.2", "decoder.1", "ffn.2", "ffn.1", "verb_ffn.2", "verb_ffn.1", "mlp.2", "mlp.1")
OPERATIONS = (
    ("ce", "none"),
    ("ce", "ce"),
    ("ce", "kl"),
    ("l2", "kl"),
    ("kl", "none"),
    ("kl", "ce"),
    ("kl", "kl"),
    ("l2_features", "none"),
    ("l2_features", "kl"),
    ("l2_features", "l2"),
    ("l2_hidden", "none"),
    ("l2_hidden", "kl"),
    ("none", "l2"),
    ("none", "kl"),
)
"""(intermediate, last) of Table 4d and Appendix D; the ones after (kl, kl) without the verbalizers' head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to train a student.

    Attributes:
        name: What cells call it.
        interaction: Share of the student's steps that are interaction.
        sft: Share that is SFT; over 1 with `interaction`: further training.
        config: Fields of DistillConfig that are not as in the recipe.
        num_layers: Decoder layers of the student; None: the recipe's.
        beams: Also tested with beam search.
    """

    name: str
    interaction: float = 0.0
    sft: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    num_layers: int | None = None
    beams: bool = False

    @property
    def verbalizes(self) -> bool:
        """Whether its verbalizers train before."""
        return self.interaction > 0 and self.config.get("intermediate", "kl") in ("kl", "l2", "ce")


class Catalogue:
    """Every arm, by table.

    Args:
        interaction: Share of a distilled student's steps that are interaction; the rest is SFT.
    """

    def __init__(self, interaction: float) -> None:
        self._interaction = interaction

    def of_table(self, table: str) -> list[Arm]:
        """Arms that a table needs, the ones it shares with others too."""
        main = {name: self._main(name) for name in MAIN}
        if table == "main":
            return [*main.values(), *(self.equal_time(name) for name in RIVALS)]
        if table == "4a":
            return [self._sized(name, layers) for layers in (4, 6) for name in ("sft", "vlsi")]
        if table == "4b":
            return [main["vlsi_without_sft"], main["vlsi"]]
        if table == "4c":
            return [self.further(name, percent) for name in ("sft", "vlsi") for percent in (0, 50, 100)]
        if table == "4d":
            return [self.operations(*each) for each in OPERATIONS]
        if table == "4e":
            return [self.matched(strategy) for strategy in STRATEGIES]
        return [self.spoken(body) for body in BODIES]

    def equal_time(self, name: str) -> Arm:
        """A rival that is given vlsi's time."""
        arm = self._main(name)
        return Arm(name=name + EQUAL_TIME, interaction=arm.interaction, sft=arm.sft, config=arm.config)

    def operations(self, intermediate: str, last: str) -> Arm:
        """A row of Table 4d."""
        same = {("kl", "kl"): "vlsi", ("none", "kl"): "last_kd", ("l2_hidden", "none"): "hidden_l2"}
        name = same.get((intermediate, last))
        if name is not None:
            return self._main(name)
        return self._distilled(f"ops.{intermediate}.{last}", intermediate=intermediate, last=last)

    def matched(self, strategy: str) -> Arm:
        """A row of Table 4e."""
        return self._main("vlsi") if strategy == "vlsi" else self._distilled(f"match.{strategy}", strategy=strategy)

    def spoken(self, body: str) -> Arm:
        """A row of Table 4f: a verbalizer's body and how many of them."""
        if body == "verb_ffn.1":
            return self._main("vlsi")
        kind, depth = body.split(".")
        return self._distilled(f"body.{body}", verbalizer=kind, verbalizer_depth=int(depth))

    def further(self, name: str, percent: int) -> Arm:
        """A row of Table 4c: the SFT of "sft" or of vlsi's last steps, `percent` of its share added or kept."""
        share = 1 - self._interaction
        if name == "sft":
            sft = 1 + share * percent / 100
            return self._main("sft") if percent == 0 else Arm(name=f"sft.more.{percent}", sft=sft)
        if percent == 100:
            return self._main("vlsi")
        return Arm(name=f"vlsi.sft.{percent}", interaction=self._interaction, sft=share * percent / 100)

    def _main(self, name: str) -> Arm:
        if name == "sft":
            return Arm(name=name, sft=1)
        if name == "sft_cosine":
            return Arm(name=name, sft=1, config={"min_lr_ratio": 0.01})
        if name == "last_kd":
            return self._distilled(name, intermediate="none")
        if name == "hidden_l2":
            return self._distilled(name, intermediate="l2_hidden", last="none", strategy="uniform")
        if name == "vlsi_without_sft":
            return Arm(name=name, interaction=1, beams=True)
        return Arm(name=name, interaction=self._interaction, sft=1 - self._interaction, beams=True)

    def _sized(self, name: str, num_layers: int) -> Arm:
        arm = self._main(name)
        return Arm(
            name=f"{name}.{num_layers}_layers",
            interaction=arm.interaction,
            sft=arm.sft,
            config=arm.config,
            num_layers=num_layers,
        )

    def _distilled(self, name: str, **config: Any) -> Arm:
        return Arm(name=name, interaction=self._interaction, sft=1 - self._interaction, config=config)


def num_seeds(arm: Arm, seeds: int) -> int:
    """How many of `seeds` an arm is trained with: all for the main claim, three for the rest."""
    return seeds if arm.name.removesuffix(EQUAL_TIME) in MAIN else min(seeds, 3)
