"""Markdown tables of the main claim and of the paper's Tables 4a to 4f, as ours."""

from collections.abc import Iterable
from typing import Any

from vlsi.arms import BODIES, EQUAL_TIME, MAIN, OPERATIONS, RIVALS, Arm, Catalogue
from vlsi.cells import Cells
from vlsi.markdown import spread, table

from verbdistill.matching.strategies import STRATEGIES

_KINDS = ("all", "yes/no", "other")
_HEAD = ("seeds", "accuracy", "yes/no", "other", "less sft, seed by seed", "CPU s of training")


def all_tables(cells: Cells) -> str:
    """Everything that the file has cells of."""
    ((_, recipe),) = cells.of("recipe")
    ((_, prior),) = cells.of("prior")
    shown = _Tables(cells, Catalogue(recipe["interaction"]))
    parts = [
        "Recipe: " + ", ".join(f"{name} {value}" for name, value in recipe.items()) + ".",
        "Question-only prior: " + ", ".join(f"{kind} {prior[kind]:.3f}" for kind in _KINDS) + ".",
        shown.teachers(),
        *(make() for make in (shown.main, shown.seed_by_seed, shown.table_4a, shown.table_4b, shown.table_4c)),
        *(make() for make in (shown.table_4d, shown.table_4e, shown.table_4f, shown.matches)),
    ]
    return "\n\n".join(part for part in parts if part)


class _Tables:
    """Tables of one file."""

    def __init__(self, cells: Cells, catalogue: Catalogue) -> None:
        self._cells = cells
        self._catalogue = catalogue

    def teachers(self) -> str:
        found = [row["all"] for _, row in self._cells.of("teacher")]
        return f"Teachers, {len(found)}: {spread(found)}." if found else ""

    def main(self) -> str:
        names = [*MAIN, *(name + EQUAL_TIME for name in RIVALS)]
        rows = [[name, self._steps(name), *self._results(name)] for name in names]
        return _filled(
            "The main claim: equal steps, then rivals in vlsi's CPU time", ("", "student's steps", *_HEAD), rows
        )

    def seed_by_seed(self) -> str:
        names = (*MAIN, *(name + EQUAL_TIME for name in RIVALS))
        found = {name: self._by_seed(name) for name in names}
        seeds = sorted(set.intersection(*(set(each) for each in found.values())), key=int)
        rows = [[seed, *(f"{found[name][seed]['tests']['all']:.4f}" for name in names)] for seed in seeds]
        return _filled("The main claim, seed by seed", ("seed", *names), rows)

    def table_4a(self) -> str:
        names = {3: ("sft", "vlsi")} | {layers: (f"sft.{layers}_layers", f"vlsi.{layers}_layers") for layers in (4, 6)}
        rows = [[str(layers), name, *self._results(name)] for layers, pair in names.items() for name in pair]
        return _filled("Table 4a as ours: sizes of the student", ("student's layers", "", *_HEAD), rows)

    def table_4b(self) -> str:
        rows = []
        for name, sft in (("vlsi_without_sft", "no"), ("vlsi", "yes")):
            found = [row["search"] for row in self._by_seed(name).values() if "search" in row]
            if found:
                rows.append([sft, str(len(found)), *(spread((row[key] for row in found), 4) for key in found[0])])
        return _filled("Table 4b as ours: with and without SFT", ("SFT", "seeds", "greedy", "5 beams"), rows)

    def table_4c(self) -> str:
        arms = {
            f"{name}, {percent}%": self._catalogue.further(name, percent)
            for name in ("sft", "vlsi")
            for percent in (0, 50, 100)
        }
        return self._of_arms("Table 4c as ours: share of the SFT step", "", arms)

    def table_4d(self) -> str:
        arms = {f"{one} / {other}": self._catalogue.operations(one, other) for one, other in OPERATIONS}
        return self._of_arms("Table 4d as ours: what is compared", "targets / last layer", arms)

    def table_4e(self) -> str:
        arms = {name: self._catalogue.matched(name) for name in STRATEGIES}
        return self._of_arms("Table 4e as ours: how layers are matched", "", arms)

    def table_4f(self) -> str:
        arms = {name: self._catalogue.spoken(name) for name in BODIES}
        return self._of_arms("Table 4f as ours: verbalizers", "body and depth", arms)

    def matches(self) -> str:
        """Figure 5: the first seed's matched layers."""
        found = self._by_seed("vlsi").get("0", {}).get("matches")
        if found is None:
            return ""
        rows = [
            [when, str(target), *(str(count) for count in counts)]
            for when in ("first", "last")
            for target, counts in enumerate(found[when], 1)
        ]
        head = (
            "tenth of interaction",
            "student's layer",
            *(f"teacher's {layer}" for layer in range(1, len(rows[0]) - 1)),
        )
        return table("Figure 5 as ours: how often layers were matched, seed 0", head, rows)

    def _of_arms(self, title: str, first: str, arms: dict[str, Arm]) -> str:
        rows = [[label, *self._results(arm.name)] for label, arm in arms.items()]
        return _filled(title, (first, *_HEAD), rows)

    def _results(self, name: str) -> list[str]:
        found, base = self._by_seed(name), self._by_seed("sft")
        if not found:
            return []
        accuracies = [spread((row["tests"][kind] for row in found.values()), 4) for kind in _KINDS]
        differences = [row["tests"]["all"] - base[seed]["tests"]["all"] for seed, row in found.items() if seed in base]
        times = (row["cpu_s"] for row in found.values())
        return [str(len(found)), *accuracies, _signed(differences), spread(times, 1)]

    def _steps(self, name: str) -> str:
        return spread((row["steps"] for row in self._by_seed(name).values()), 0)

    def _by_seed(self, name: str) -> dict[str, Any]:
        return {fields["seed"]: row for fields, row in self._cells.of("run", arm=name)}


def _signed(values: Iterable[float]) -> str:
    text = spread(values, 4)
    return text if text.startswith("-") else f"+{text}"


def _filled(title: str, head: tuple[str, ...], rows: list[list[str]]) -> str:
    """The table of rows that have results; nothing without any."""
    full = [row for row in rows if len(row) == len(head)]
    return table(title, head, full) if full else ""
