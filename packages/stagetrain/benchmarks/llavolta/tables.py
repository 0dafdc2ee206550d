"""Markdown tables of the paper's Tables 2 to 7, as ours."""

from statistics import fmean
from typing import Any

from llavolta.arms import (
    EQUAL_TIME,
    HEAVY,
    LIGHT,
    MAIN,
    SCHEMES,
    SPLITS,
    Arm,
    Catalogue,
    label,
)
from llavolta.cells import Cells
from llavolta.markdown import spread, table
from llavolta.questions import NUM_FRAMES

from stagetrain import CompressionSetting, Schedule, compression_ratio_percent, visual_token_count

NUM_VISUAL = 64
_KINDS = ("all", "yes/no", "other")
_HEAD = ("seeds", "accuracy", "yes/no", "other", "CPU s of training")


def all_tables(cells: Cells) -> str:
    """Everything that the file has cells of."""
    ((_, recipe),) = cells.of("recipe")
    ((_, prior),) = cells.of("prior")
    shown = _Tables(cells, Catalogue(recipe["num_layers"]))
    parts = [
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in recipe.items()) + ".",
        "Question-only prior: " + ", ".join(f"{kind} {prior[kind]:.3f}" for kind in _KINDS) + ".",
        *(
            make()
            for make in (shown.table_2, shown.table_3, shown.table_4, shown.table_5, shown.table_6, shown.table_7)
        ),
        shown.main_claim(),
    ]
    return "\n\n".join(part for part in parts if part)


class _Tables:
    """Tables of one depth."""

    def __init__(self, cells: Cells, catalogue: Catalogue) -> None:
        self._cells = cells
        self._catalogue = catalogue

    def table_2(self) -> str:
        plain, kept = self._catalogue.scheme("plain"), self._catalogue.compressors
        rows = [self._tested("trained without", plain, each) for each in kept]
        rows += [self._tested("trained with", self._catalogue.always(each), each) for each in kept]
        rows.append(self._tested("no compression", plain, None))
        title = "Table 2 as ours: compressors, tested with compression"
        return _filled(title, ("", "compressor", "tokens", "CR", *_HEAD), rows)

    def table_3(self) -> str:
        arms = {setting: self._catalogue.always(setting) for setting in self._catalogue.extremes}
        rows = [self._tested(self._parameters(arm), arm, setting) for setting, arm in arms.items()]
        title = "Table 3 as ours: Q-Former before the decoder against pooling behind its first layer"
        return _filled(title, ("parameters", "compressor", "tokens", "CR", *_HEAD), rows)

    def table_4(self) -> str:
        names = {self._catalogue.scaled(HEAVY): "heavy", self._catalogue.scaled(LIGHT): "light"}
        rows = [self._tested(names[each.layer], self._catalogue.always(each), each) for each in self._catalogue.levels]
        rows.append(self._tested("none", self._catalogue.scheme("plain"), None))
        rows = [[*row, self._prefill(row[1])] for row in rows]
        title = "Table 4 as ours: levels of compression, trained and tested compressed"
        return _filled(title, ("level", "compressor", "tokens", "CR", *_HEAD, "prefill ms"), rows)

    def table_5(self) -> str:
        rows = [self._staged(name, self._catalogue.scheme(name)) for name in SCHEMES]
        title = "Table 5 as ours: schemes, tested uncompressed"
        return _filled(title, ("scheme", "mean tokens", "CR", "CPU saved", *_HEAD), rows)

    def table_6(self) -> str:
        arms = {arm.schedule.name: arm for arm in self._catalogue.of_table(6)}
        rows = [self._staged(name, arm) for name, arm in arms.items()]
        title = f"Table 6 as ours: clips of {NUM_FRAMES} frames, each compressed by itself, tested uncompressed"
        return _filled(title, ("scheme", "mean tokens", "CR", "CPU saved", *_HEAD), rows)

    def table_7(self) -> str:
        arms = {0: self._catalogue.scheme("plain"), 50: self._catalogue.scheme("two_stage")}
        arms |= {percent: self._catalogue.split(percent) for percent in SPLITS}
        arms[100] = self._catalogue.always(self._catalogue.first_stage)
        rows = [self._staged(f"{percent}% / {100 - percent}%", arms[percent]) for percent in sorted(arms)]
        title = "Table 7 as ours: shares of two_stage, tested uncompressed"
        return _filled(title, ("stage 1 / stage 2", "mean tokens", "CR", "CPU saved", *_HEAD), rows)

    def main_claim(self) -> str:
        """Plain against three-stage deeper seed by seed, at equal steps and at equal time."""
        found = {name: self._by_seed(name) for name in (*MAIN, EQUAL_TIME)}
        rows = []
        for seed in sorted(set.intersection(*(set(each) for each in found.values())), key=int):
            plain, staged, short = (found[name][seed] for name in (*MAIN, EQUAL_TIME))
            right = [row["tests"]["off"]["all"] for row in (plain, staged, short)]
            differences = [f"{right[1] - other:+.4f}" for other in (right[0], right[2])]
            steps = f"{short['steps']:.0f} of {plain['steps']:.0f}"
            rows.append([seed, *(f"{each:.4f}" for each in right), steps, *differences])
        if rows:
            means = [fmean(float(row[place]) for row in rows) for place in (5, 6)]
            rows.append(["mean", *(spread((float(row[place]) for row in rows), 4) for place in (1, 2, 3)), ""])
            rows[-1] += [f"{mean:+.4f}" for mean in means]
        head = ("seed", *MAIN, "plain, equal time", "its steps", "staged less plain", "staged less equal time")
        return _filled("The main claim, seed by seed", head, rows)

    def _tested(self, kind: str, arm: Arm, setting: CompressionSetting | None) -> list[str]:
        """A row of an arm tested under one setting."""
        name = "no compression" if setting is None else label(setting)
        return [kind, name, *self._cost(setting), *self._results(arm, setting)]

    def _staged(self, name: str, arm: Arm) -> list[str]:
        """A row of an arm tested uncompressed, with what its stages cost on average."""
        frames = NUM_FRAMES if arm.on_clips else 1
        tokens = frames * _mean_tokens(arm.schedule, self._catalogue.num_layers)
        ratio = 100 * frames * self._catalogue.num_layers * NUM_VISUAL / tokens
        plain = "plain.clips" if arm.on_clips else "plain"
        saved = [
            100 * (1 - row["cpu_s"] / base["cpu_s"])
            for seed, row in self._by_seed(arm.name).items()
            if (base := self._by_seed(plain).get(seed)) is not None
        ]
        share = spread(saved, 1) if arm.name != plain else "-"
        return [
            name,
            f"{tokens:.0f}",
            f"{ratio:.0f}%",
            f"{share}%" if share != "-" else share,
            *self._results(arm, None),
        ]

    def _cost(self, setting: CompressionSetting | None) -> list[str]:
        layers = self._catalogue.num_layers
        tokens = visual_token_count(layers, NUM_VISUAL, setting)
        return [f"{tokens}", f"{compression_ratio_percent(layers, NUM_VISUAL, setting):.0f}%"]

    def _results(self, arm: Arm, setting: CompressionSetting | None) -> list[str]:
        rows = list(self._by_seed(arm.name).values())
        tests = [row["tests"][label(setting)] for row in rows if label(setting) in row["tests"]]
        if not tests:
            return []
        accuracies = [spread((test[kind] for test in tests), 4) for kind in _KINDS]
        return [str(len(tests)), *accuracies, spread((row["cpu_s"] for row in rows), 1)]

    def _parameters(self, arm: Arm) -> str:
        """Of the compressor."""
        rows = self._by_seed(arm.name).values()
        return next((f"{row['compressor_parameters']:,}" for row in rows), "-")

    def _by_seed(self, name: str) -> dict[str, Any]:
        return {fields["seed"]: row for fields, row in self._cells.of("run", arm=name)}

    def _prefill(self, name: str) -> str:
        found = [row for _, row in self._cells.of("prefill")]
        key = "off" if name == "no compression" else name
        return f"{1000 * found[0][key]['median_s']:.0f}" if found else "-"


def _mean_tokens(schedule: Schedule, num_layers: int) -> float:
    counts = (
        stage.fraction * visual_token_count(num_layers, NUM_VISUAL, stage.compression) for stage in schedule.stages
    )
    return sum(counts)


def _filled(title: str, head: tuple[str, ...], rows: list[list[str]]) -> str:
    """The table of rows that have results; nothing without any."""
    full = [row for row in rows if len(row) == len(head)]
    return table(title, head, full) if full else ""
