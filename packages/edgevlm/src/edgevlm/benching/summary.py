"""What a bench found: medians over rounds, and how models compare with the fastest rival."""

import statistics
from typing import Any

from edgevlm.profiling.parts import PARTS

OWN_TYPE = "edgevlm"


def summarize(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each model and batch size.

    `ttft_s`, `ttft_cpu_s` and `decode_tokens_per_s` are medians over all rounds and repeats, ranges beside them;
    `peak_bytes` is the largest. `ttft_speedup`, `ttft_cpu_speedup` and `decode_speedup` say how many times better
    than the best model of another kind than ours at the same batch size; None where there is none.
    """
    rows = []
    for key in dict.fromkeys((record["model"], record["batch_size"]) for record in records):
        of_key = [record for record in records if (record["model"], record["batch_size"]) == key]
        firsts = [value for record in of_key for value in record["ttft_s"]]
        rates = [value for record in of_key for value in record["decode_tokens_per_s"] if value is not None]
        rows.append({
            "model": key[0], "batch_size": key[1], "model_type": of_key[0]["model_type"], "rounds": len(of_key),
            "num_params": of_key[0]["num_params"],
            "ttft_s": statistics.median(firsts), "ttft_s_range": [min(firsts), max(firsts)],
            "ttft_cpu_s": statistics.median(value for record in of_key for value in record["ttft_cpu_s"]),
            "decode_tokens_per_s": statistics.median(rates) if rates else None,
            "decode_tokens_per_s_range": [min(rates), max(rates)] if rates else None,
            "peak_bytes": max(record["peak_bytes"] for record in of_key),
            "ttft_shares": of_key[0].get("ttft_shares", {}), "decode_shares": of_key[0].get("decode_shares", {}),
        })  # fmt: skip
    for row in rows:
        rivals = [r for r in rows if r["batch_size"] == row["batch_size"] and r["model_type"] != OWN_TYPE]
        for field, speedup in (("ttft_s", "ttft_speedup"), ("ttft_cpu_s", "ttft_cpu_speedup")):
            row[speedup] = min(rival[field] for rival in rivals) / row[field] if rivals else None
        rates = [rival["decode_tokens_per_s"] for rival in rivals if rival["decode_tokens_per_s"]]
        own = row["decode_tokens_per_s"]
        row["decode_speedup"] = own / max(rates) if rates and own else None
    return rows


def bench_table(settings: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The summary for people."""
    where = settings["device"] if settings["device"] != "cpu" else f"CPU, {settings['num_threads']} threads"
    width = max(5, *(len(row["model"]) for row in rows))
    lines = [
        f"{settings['dtype']}, {where}; one {settings['image']} image and {settings['num_text_tokens']} text tokens "
        f"a row, {settings['num_new_tokens']} new tokens; weights are random unless a directory holds them",
        f"{'model':<{width}} {'batch':>5} {'rounds':>6} {'TTFT s':>9} {'least':>9} {'most':>9} {'x rival':>8} "
        f"{'CPU s':>8} {'x rival':>8} {'tokens/s':>9} {'x rival':>8} {'peak GB':>8}",
    ]
    lines += [
        f"{row['model']:<{width}} {row['batch_size']:>5} {row['rounds']:>6} {row['ttft_s']:>9.3f} "
        f"{row['ttft_s_range'][0]:>9.3f} {row['ttft_s_range'][1]:>9.3f} {_number(row['ttft_speedup'], 8)} "
        f"{row['ttft_cpu_s']:>8.2f} {_number(row['ttft_cpu_speedup'], 8)} "
        f"{_number(row['decode_tokens_per_s'], 9)} {_number(row['decode_speedup'], 8)} {row['peak_bytes'] / 1e9:>8.2f}"
        for row in rows
    ]
    lines += ["", "x rival: times better than the best rival at the same batch size. CPU s: processor time of TTFT."]
    lines += ["Shares of time, measured in a request of their own:"]
    shown = [part for part in (*PARTS, "other") if any(part in row["ttft_shares"] for row in rows)]
    for title, field in (("first token", "ttft_shares"), ("later token", "decode_shares")):
        lines.append(f"{title:<{width}} {'batch':>5} " + " ".join(f"{part:>14}" for part in shown))
        lines += [
            f"{row['model']:<{width}} {row['batch_size']:>5} "
            + " ".join(f"{row[field].get(part, 0.0):>14.1%}" for part in shown)
            for row in rows
            if row[field]
        ]
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.2f'):>{width}}"
