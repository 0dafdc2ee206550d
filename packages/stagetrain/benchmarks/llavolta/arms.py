"""What is trained for the paper's tables, and how each trained model is tested.

Layers are the paper's, scaled as `named_schedule` scales them; with 8 decoder layers 2 becomes 1 and 16 becomes 4.
"""

from dataclasses import dataclass

from stagetrain import CompressionSetting, Schedule, Stage, named_schedule

TABLES = (2, 3, 4, 5, 6, 7)
SCHEMES = (
    "plain",
    "two_stage",
    "three_stage_deeper",
    "three_stage_wider",
    "four_stage_wider_then_deeper",
    "four_stage_deeper_then_wider",
)
MAIN = ("plain", "three_stage_deeper")
EQUAL_TIME = "plain_equal_time"
"""Plain, with as many steps as fit into the CPU time of three_stage_deeper."""
HEAVY, LIGHT = 2, 16
"""Layers of Table 4's two levels, of the paper's 32."""
STRIDES = (64, 16, 8, 4)
SPLITS = (25, 75, 90)
"""Percent of two_stage that is compressed; 0 is plain, 50 two_stage itself, 100 always compressed."""
COMPRESSORS = {"random": 16, "k_means": 16, "attention": 16, "vcc": 8, "average": 16, "average_2d": 16}
"""Strides of Table 2: a CR of 557%, the paper's; vcc cannot leave fewer tokens of 64 than at stride 8."""
Q_FORMER = CompressionSetting(layer=0, stride=8, compressor="q_former")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to train.

    Attributes:
        schedule: Its stages; its name is the arm's.
        tests: Settings that the trained model is tested under; None: uncompressed.
        on_clips: Trained and tested on clips of several frames, not on images.
    """

    schedule: Schedule
    tests: tuple[CompressionSetting | None, ...] = (None,)
    on_clips: bool = False

    @property
    def name(self) -> str:
        """What cells call it."""
        return f"{self.schedule.name}{'.clips' if self.on_clips else ''}"


class Catalogue:
    """Every arm for a decoder of `num_layers`."""

    def __init__(self, num_layers: int) -> None:
        self.num_layers = num_layers

    def scaled(self, paper_layer: int) -> int:
        """A layer of the paper's 32."""
        return max(1, round(paper_layer * self.num_layers / 32))

    @property
    def compressors(self) -> tuple[CompressionSetting, ...]:
        """Settings of Table 2."""
        layer = self.scaled(HEAVY)
        return tuple(CompressionSetting(layer=layer, stride=s, compressor=name) for name, s in COMPRESSORS.items())

    @property
    def extremes(self) -> tuple[CompressionSetting, ...]:
        """Settings of Table 3."""
        return (Q_FORMER, *(CompressionSetting(layer=1, stride=stride) for stride in (64, 16)))

    @property
    def levels(self) -> tuple[CompressionSetting, ...]:
        """Settings of Table 4."""
        return tuple(
            CompressionSetting(layer=self.scaled(level), stride=stride)
            for level in (HEAVY, LIGHT)
            for stride in STRIDES
        )

    @property
    def first_stage(self) -> CompressionSetting:
        """What two_stage begins with."""
        return CompressionSetting(layer=self.scaled(HEAVY), stride=8)

    def of_table(self, table: int) -> list[Arm]:
        """Arms that a table needs."""
        if table == 2:
            return [self._plain, *map(self.always, self.compressors)]
        if table == 3:
            return [self._plain, *map(self.always, self.extremes)]
        if table == 4:
            return [self._plain, *map(self.always, self.levels)]
        if table == 5:
            return [self._plain, *map(self.scheme, SCHEMES[1:]), Arm(schedule=self._named(EQUAL_TIME, "plain"))]
        if table == 6:
            return [Arm(schedule=named_schedule(name, self.num_layers), on_clips=True) for name in SCHEMES]
        splits = [self.split(percent) for percent in SPLITS]
        return [self._plain, self.scheme("two_stage"), *splits, self.always(self.first_stage)]

    def scheme(self, name: str) -> Arm:
        """A scheme of Table 1, tested uncompressed."""
        return Arm(schedule=named_schedule(name, self.num_layers))

    def always(self, setting: CompressionSetting) -> Arm:
        """Compressed from the first step to the last, tested so; without learned parameters uncompressed too."""
        tests = (setting,) if setting == Q_FORMER else (setting, None)
        return Arm(
            schedule=Schedule(f"always.{label(setting)}", (Stage(fraction=1, compression=setting),)), tests=tests
        )

    def split(self, percent: int) -> Arm:
        """two_stage with another share of its first stage."""
        stages = (Stage(fraction=percent / 100, compression=self.first_stage), Stage(fraction=1 - percent / 100))
        return Arm(schedule=Schedule(f"split.{percent}", stages))

    @property
    def _plain(self) -> Arm:
        return Arm(schedule=self._named("plain", "plain"), tests=(None, *self.compressors))

    def _named(self, name: str, scheme: str) -> Schedule:
        return Schedule(name, named_schedule(scheme, self.num_layers).stages)


def label(setting: CompressionSetting | None) -> str:
    """A setting as cells call it."""
    return "off" if setting is None else f"{setting.compressor}.{setting.layer}.{setting.stride}"


def num_seeds(arm: Arm, seeds: int) -> int:
    """How many of `seeds` an arm is trained with: all for the main claim, three for the rest, one for clips."""
    if arm.on_clips:
        return min(seeds, 1)
    return seeds if arm.schedule.name in (*MAIN, EQUAL_TIME) else min(seeds, 3)
