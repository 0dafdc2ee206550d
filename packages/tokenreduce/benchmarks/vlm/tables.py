"""Markdown tables of the measured cells; every figure a mean over seeds, +- the sample standard deviation."""

from statistics import fmean
from typing import Any

from vlm.cells import Cells
from vlm.data import GROUNDS
from vlm.markdown import spread, table

_TOKENS = ("64", "16", "9")
_MEANS = ("16", "24")
_NAMES = {
    "dfmr": "DFMR",
    "literal": "DFMR, literal",
    "dfmr-12": "DFMR, factors 1 and 2",
    "blind": "DFMR's shares, blind",
    "blind-literal": "literal's shares, blind",
    "blind-12": "factors 1 and 2, blind",
    "downsampling": "downsampled images, blind",
    "random-drop": "random drop",
}
_CHOICES = ("DFMR's choice (24)", "literal (24)", "factors 1, 2 (24)")
_GROUPS = ("presence", "colour", *(f"{number} shapes" for number in range(1, 5)), *GROUNDS)
Row = dict[str, Any]


def all_tables(cells: Cells) -> str:
    parts = [_data(cells), _table_1(cells)]
    parts += [_own_choice(cells, mean) for mean in _MEANS]
    parts += [_by_group(cells)]
    parts += [_rivals(cells, mean) for mean in _MEANS]
    parts += [_paired(cells, ours) for ours in ("dfmr", "dfmr-12")]
    parts += [_choices(cells, policy, mean) for policy, mean in (("plain", "16"), ("plain", "24"), ("dfmr", "24"))]
    return "\n\n".join(parts)


def _data(cells: Cells) -> str:
    (_, prior), *_ = cells.of("prior")
    towers = spread(row["patch_accuracy"] for _, row in cells.of("tower"))
    differences = [row["largest_difference"] for _, row in cells.of("attach")]
    rows = [
        ["questions answered without the image", f"{prior['all']:.3f}"],
        ["presence / colour", f"{prior['presence']:.3f} / {prior['colour']:.3f}"],
        ["tower: covered patches right in colour and shape", towers],
        ["rows here against `attach` on the model, largest difference of logits", f"{max(differences):.1e}"],
    ]
    return table("What there is to learn", ("", "accuracy"), rows)


def _table_1(cells: Cells) -> str:
    rows = []
    for policy in ("plain", "random", "blind", "dfmr", "literal", "blind-12", "dfmr-12"):
        values = _own(cells, policy)
        rows.append(
            [
                _name(policy),
                *(spread(row[tokens]["all"] for row in values) for tokens in _TOKENS),
                spread(fmean(row[tokens]["all"] for tokens in _TOKENS) for row in values),
                spread(row["dfmr 24"]["all"] for row in values),
                spread(row["literal 24"]["all"] for row in values),
                spread(row["dfmr-12 24"]["all"] for row in values),
            ]
        )
    head = ("trained", *(f"{tokens} tokens" for tokens in _TOKENS), "mean of three", *_CHOICES)
    return table("Table 1 as ours: accuracy on test images", head, rows)


def _own_choice(cells: Cells, mean: str) -> str:
    rows = []
    for mode in ("dfmr", "literal", "dfmr-12"):
        choices = [row[f"{mode} {mean}"] for row in _own(cells, "random")]
        shares = " / ".join(f"{fmean(each['shares'][index] for each in choices):.2f}" for index in range(3))
        rows.append([_name(mode), spread((each["tokens"] for each in choices), 1), shares])
    head = ("mode", "mean tokens on test images", "share at 64 / 16 / 9")
    return table(f"What DFMR chooses, tau calibrated on training images to a mean of {mean}", head, rows)


def _by_group(cells: Cells) -> str:
    rows = []
    for policy, at in [
        *(("random", tokens) for tokens in _TOKENS),
        ("random", "dfmr 24"),
        ("dfmr", "dfmr 24"),
        ("dfmr-12", "dfmr-12 24"),
    ]:
        values = [row[at] for row in _own(cells, policy)]
        where = f"{at} tokens" if at in _TOKENS else "its choice (24)"
        rows.append(
            [f"{_name(policy)}, {where}", *(f"{fmean(each[group] for each in values):.3f}" for group in _GROUPS)]
        )
    return table("Where tokens matter: accuracy by question, number of shapes and ground", ("", *_GROUPS), rows)


def _rivals(cells: Cells, mean: str) -> str:
    names = list(dict.fromkeys(name for _, row in cells.of("rivals", mean=mean) for name in _ways(row)))
    rows = []
    for name in names:
        trained = name.split(",")[0]
        by_policy = [
            spread(row[name]["all"] for _, row in cells.of("rivals", mean=mean, policy=policy) if name in row)
            for policy in ("plain", "random", trained)
        ]
        tokens = [row[name]["tokens"] for _, row in cells.of("rivals", mean=mean, policy="plain")]
        rows.append([_name(name), f"{fmean(tokens):.1f}", *by_policy])
    head = ("reduced by", "mean tokens", "model trained plain", "trained random", "trained with its own policy (24)")
    return table(f"DFMR and its rivals at a mean of about {mean} tokens", head, rows)


def _paired(cells: Cells, ours: str) -> str:
    """Ours less a rival, each trained with its own policy, seed by seed."""
    rows = []
    for name in ("blind", "blind-12", "downsampling", "random-drop", "attention", "merging"):
        row = [_name(name)]
        for mean in _MEANS:
            left, right = _by_seed(cells, ours, mean), _by_seed(cells, name, mean)
            differences = [left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())]
            row.append(f"{fmean(differences):+.3f} ({', '.join(f'{each:+.3f}' for each in differences)})")
        rows.append(row)
    head = (f"{_name(ours)}, less", *(f"mean {mean} tokens (each seed)" for mean in _MEANS))
    return table(f"{_name(ours)} against each rival, both trained with their own policy", head, rows)


def _by_seed(cells: Cells, policy: str, mean: str) -> dict[str, float]:
    found = cells.of("rivals", mean=mean, policy=policy)
    return {fields["seed"]: row[policy]["all"] for fields, row in found}


def _choices(cells: Cells, policy: str, mean: str) -> str:
    values = [row for _, row in cells.of("ways", policy=policy, mean=mean)]
    head = ("statistic, rule", "val", "test", "mean tokens", "64 / 16 / 9", "rank corr. with shapes", "with ground")
    rows = [_way(name, [row[name] for row in values]) for name in _ways(values[0])]
    return table(f"Ways to choose the factor, model trained {_name(policy)}, mean of about {mean} tokens", head, rows)


def _way(name: str, found: list[Row]) -> list[str]:
    """One way's row; `found` holds a cell a seed."""
    shares = [fmean(each["shares"][index] for each in found) for index in range(3)]
    looked = "with_num_shapes" in found[0]
    return [
        name,
        spread(each["val"]["all"] for each in found) if "val" in found[0] else "-",
        spread(each["test"]["all"] for each in found),
        f"{fmean(each['tokens'] for each in found):.1f}",
        " / ".join(f"{share:.2f}" for share in shares),
        f"{fmean(each['with_num_shapes'] for each in found):+.2f}" if looked else "-",
        f"{fmean(each['with_ground'] for each in found):+.2f}" if looked else "-",
    ]


def _own(cells: Cells, policy: str) -> list[Row]:
    return [row for _, row in cells.of("own", policy=policy)]


def _ways(row: Row) -> list[str]:
    return [name for name in row if name != "seconds"]


def _name(name: str) -> str:
    first, *rest = name.split(",")
    return ",".join([_NAMES.get(first, first), *rest])
