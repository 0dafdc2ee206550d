"""Markdown tables of what the file has."""

from collections.abc import Iterator
from typing import Any

from auroraedge.arms import AIDS, COMPRESSORS, DATA, FUSIONS, LLM, ORDERS, TOKENS, Arm
from auroraedge.cells import Cells, Row
from auroraedge.markdown import spread, table

_CELLS = [(tokens, llm) for llm in LLM for tokens in TOKENS]
_SHORT = {"frozen": "LLM frozen", "trained": "LLM trained"}
_PAPER = {"none": "Compress", "cross": "Cross", "decoder": "Decoder", "combined": "AuroraEdge"}
_OFF = (
    "whole", "cross off", "decoder off", "fusion off", "tokens zero", "tokens of another", "fusion sees another",
)  # fmt: skip


def all_tables(cells: Cells) -> str:
    """Every table with results."""
    shown = _Tables(cells)
    return "\n\n".join(part for part in shown.parts() if part)


class _Tables:
    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    def parts(self) -> Iterator[str]:
        for _, recipe in self._cells.of("recipe"):
            yield "Recipe: " + ", ".join(f"{name} {value}" for name, value in recipe.items()) + "."
        yield self._starts()
        for data in DATA:
            rows = {fusion: {"data": data, "fusion": fusion} for fusion in FUSIONS}
            yield self._grid(f"{data}: fusion, mlp compressor", rows)
        for data in DATA:
            yield self._differences(data)
        for tokens in TOKENS:
            yield self._table_6(tokens)
        for data in DATA:
            rows = {
                f"{compressor}, fusion {fusion}": {"data": data, "compressor": compressor, "fusion": fusion}
                for fusion in ("none", "combined")
                for compressor in COMPRESSORS
            }
            yield self._grid(f"{data}: compressors", rows)
        for data in DATA:
            yield self._off(data)
        yield self._grid("boards: reconstruction, no fusion", {aid: {"data": "boards", "aid": aid} for aid in AIDS})
        rows = {
            f"{order}, {layers} layer{'s' * (layers > 1)}": {
                "data": "boards", "fusion": "combined", "order": order, "layers": layers,
            }
            for order, layers in ORDERS
        }  # fmt: skip
        yield self._grid("boards: combined fusion in series or in parallel, and its layers", rows)
        yield self._costs()

    def _starts(self) -> str:
        rows = []
        for data in DATA:
            found = [row for _, row in self._cells.of("start", data=data)]
            for _, prior in self._cells.of("prior", data=data):
                for kind in prior:
                    values = spread(row["accuracy"][kind] for row in found)
                    rows.append([data, kind, f"{prior[kind]:.3f}", values, str(len(found))])
        head = ("data", "questions", "question alone", "64 tokens, before any compression", "seeds")
        return table("What there is to learn", head, rows) if rows else ""

    def _grid(self, title: str, rows: dict[str, dict[str, Any]]) -> str:
        """Accuracy by tokens and language model."""
        head = ("", *(f"{tokens}, {_SHORT[llm]}" for tokens, llm in _CELLS), "seeds")
        shown = []
        for name, fields in rows.items():
            found = [self._rows(**fields, tokens=tokens, llm=llm) for tokens, llm in _CELLS]
            if any(found):
                shown.append([name, *map(_mean, found), str(max(map(len, found)))])
        return table(f"{title}: accuracy on test questions", head, shown) if shown else ""

    def _differences(self, data: str) -> str:
        """What fusion adds to no fusion, seed by seed."""
        head = ("", *(f"{tokens}, {_SHORT[llm]}" for tokens, llm in _CELLS))
        rows = []
        for fusion in FUSIONS[1:]:
            row = [f"{fusion} less none"]
            for tokens, llm in _CELLS:
                ours = self._by_seed(data=data, fusion=fusion, tokens=tokens, llm=llm)
                plain = self._by_seed(data=data, fusion="none", tokens=tokens, llm=llm)
                both = sorted(ours.keys() & plain.keys())
                row.append(spread((_all(ours[seed]) - _all(plain[seed]) for seed in both), 3))
            rows.append(row)
        filled = any(cell != "-" for row in rows for cell in row[1:])
        return table(f"{data}: what fusion adds, seed by seed", head, rows) if filled else ""

    def _table_6(self, tokens: int) -> str:
        """Table 6 as ours: everything but the tower trained."""
        rows = []
        for data in DATA:
            found = {f: self._rows(data=data, fusion=f, tokens=tokens, llm="trained") for f in FUSIONS}
            kinds = dict.fromkeys(kind for each in found.values() for row in each for kind in row["accuracy"])
            for kind in kinds:
                of_kind = [spread(row["accuracy"][kind] for row in found[fusion]) for fusion in FUSIONS]
                rows.append([f"{data}, {kind}", *of_kind])
        title = f"Table 6 as ours, {tokens} of 64 tokens, LLM trained"
        return table(title, ("benchmark", *(_PAPER[fusion] for fusion in FUSIONS)), rows) if rows else ""

    def _off(self, data: str) -> str:
        rows = []
        for llm in LLM:
            for tokens in TOKENS:
                for fusion in FUSIONS[1:]:
                    found = [row["off"] for row in self._rows(data=data, fusion=fusion, tokens=tokens, llm=llm)]
                    if found:
                        cells = [spread(row[name] for row in found if name in row) for name in _OFF]
                        rows.append([f"{fusion}, {tokens}, {_SHORT[llm]}", *cells])
        title = f"{data}: parts switched off after training, accuracy on the first test images"
        return table(title, ("", *_OFF), rows) if rows else ""

    def _costs(self) -> str:
        rows = []
        for fusion in FUSIONS:
            cells = [self._rows(fusion=fusion, tokens=tokens, llm="trained") for tokens in TOKENS]
            if any(cells):
                rows.append([fusion, *(spread((row["cpu_s"] for row in each), 1) for each in cells)])
        head = ("fusion", *(f"{tokens} tokens" for tokens in TOKENS))
        return table("CPU seconds of training a run, LLM trained", head, rows) if rows else ""

    def _rows(self, **wanted: Any) -> list[Row]:
        return list(self._by_seed(**wanted).values())

    def _by_seed(self, **wanted: Any) -> dict[str, Row]:
        plain = Arm(data="", tokens=0, llm="").fields()
        fields = {name: value for name, value in plain.items() if name not in ("data", "tokens", "llm")} | wanted
        return {f"{at['data']}.{at['seed']}": row for at, row in self._cells.of("run", **fields)}


def _all(row: Row) -> float:
    return float(row["accuracy"]["all"])


def _mean(rows: list[Row]) -> str:
    return spread(map(_all, rows))
