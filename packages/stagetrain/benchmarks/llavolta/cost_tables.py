"""Tables of time and memory."""

from collections.abc import Iterator

from llavolta.cells import Cells, Row
from llavolta.markdown import table


def time_tables(cells: Cells) -> Iterator[str]:
    """Step times by stage, and what a run of equal steps takes, for each depth."""
    for fields, row in cells.of("time"):
        rows = [[name, *_times(value), f"{value['tokens_per_s']:.0f}"] for name, value in row["step"].items()]
        rows += [[f"run of {row['steps_per_run']}, {name}", *_times(value), "-"] for name, value in row["run"].items()]
        saved = row["saving_percent"]
        rows.append(
            ["saved", *(f"{saved[clock][which]:.1f}%" for clock in saved for which in ("of_min", "median")), "-"]
        )
        head = ("", "ms, best", "ms, median", "CPU ms, best", "CPU ms, median", "tokens/s")
        yield table(f"{fields['layers']} layers, {row['rounds']} rounds", head, rows)


def memory_table(cells: Cells) -> str:
    """Peak over what was held before the step, with and without gradient checkpointing."""
    points: dict[str, dict[str, Row]] = {}
    for fields, row in cells.of("memory"):
        points.setdefault(fields["point"], {})[fields["checkpointing"]] = row
    rows = []
    for point, found in sorted(points.items(), key=lambda each: next(iter(each[1].values()))["cr_percent"]):
        sizes = [found[on] for on in ("False", "True") if on in found]
        peaks = [f"{(row['peak_bytes'] - row['before_bytes']) / 2**20:.0f}" for row in sizes]
        rows.append(
            [point, f"{sizes[0]['cr_percent']:.0f}%", *peaks, *(f"{1000 * row['step_cpu_s']:.0f}" for row in sizes)]
        )
    head = ("layer.stride", "CR", "peak MiB", "with checkpointing", "CPU ms a step", "with checkpointing")
    return table("Memory that a training step takes, 8 layers", head, rows)


def _times(value: Row) -> list[str]:
    return [f"{1000 * value[which][clock]:.0f}" for clock in ("wall_s", "cpu_s") for which in ("min", "median")]
