"""Tables of time and memory."""

from collections.abc import Iterator

from llavolta.cells import Cells, Row
from llavolta.markdown import table
from llavolta.memory_point import SIZES


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


def memory_tables(cells: Cells) -> Iterator[str]:
    """Peak over what was held before the step, for each depth with and without gradient checkpointing."""
    found: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for fields, row in cells.of("memory"):
        found.setdefault((fields["layers"], fields["checkpointing"]), []).append((fields["point"], row))
    for (layers, checkpointing), points in sorted(found.items()):
        rows = [
            [
                point,
                f"{row['cr_percent']:.0f}%",
                f"{(row['peak_bytes'] - row['before_bytes']) / 2**20:.0f}",
                f"{1000 * row['step_cpu_s']:.0f}",
            ]
            for point, row in sorted(points, key=lambda each: each[1]["cr_percent"])
        ]
        how = "with" if checkpointing == "True" else "without"
        size = SIZES[int(layers)]
        title = (
            f"Memory of a training step {how} gradient checkpointing, {layers} layers {size['hidden_size']} wide,"
            f" batch {size['batch']}"
        )
        yield table(title, ("layer.stride", "CR", "peak MiB", "CPU ms a step"), rows)


def _times(value: Row) -> list[str]:
    return [f"{1000 * value[which][clock]:.0f}" for clock in ("wall_s", "cpu_s") for which in ("min", "median")]
