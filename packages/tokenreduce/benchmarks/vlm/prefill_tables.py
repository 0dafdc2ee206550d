"""Tables of the measured rounds: medians over rounds, and ratios of them."""

from statistics import median

from vlm.cells import Cells
from vlm.markdown import table
from vlm.prefill import NUM_TEXT, VISUAL_TOKENS

_REDUCERS = ("dfmr", "fixed pooling", "random drop", "attention", "merging")


def all_tables(cells: Cells) -> str:
    threads = sorted({fields["threads"] for fields, _ in cells.of("ttft")})
    return "\n\n".join(_of_threads(cells, number) for number in threads)


def _of_threads(cells: Cells, threads: str) -> str:
    rounds = [value for _, value in cells.of("ttft", threads=threads)]
    names = [name for name in rounds[0] if name != "seconds"]
    seconds = {name: median(each[name] for each in rounds) for name in names}
    return f"{_against_tokens(rounds, seconds, threads)}\n\n{_against_rivals(rounds, seconds)}"


def _against_tokens(rounds: list[dict[str, float]], seconds: dict[str, float], threads: str) -> str:
    rows = []
    for tokens in VISUAL_TOKENS:
        name = f"prefill {tokens}"
        # DFMR runs on the whole image too, only to leave it as it is.
        total = seconds["tower"] + seconds["dfmr"] + seconds[name]
        whole = seconds["tower"] + seconds["prefill 576"]
        rows.append(
            [
                f"1 image, {tokens}",
                _span(rounds, name),
                _ratio(rounds, "prefill 576", name),
                f"{total:.2f}",
                f"{whole / total:.2f}",
            ]
        )
    for name in ("three whole", "three mixed"):
        mixed = f"prefill {name}"
        tokens = {"three whole": "3 x 576", "three mixed": "576 + 144 + 64"}[name]
        total = 3 * seconds["tower"] + seconds[mixed] + (3 * seconds["dfmr"] if name == "three mixed" else 0)
        whole = 3 * seconds["tower"] + seconds["prefill three whole"]
        rows.append(
            [
                f"3 images, {tokens}",
                _span(rounds, mixed),
                _ratio(rounds, "prefill three whole", mixed),
                f"{total:.2f}",
                f"{whole / total:.2f}",
            ]
        )
    head = ("visual tokens", "prefill, s (min to max)", "times faster", "tower + DFMR + prefill, s", "times faster")
    title = (
        f"Prefill of a 1.5B shape, {NUM_TEXT} text tokens, {threads} thread, median of {len(rounds)} interleaved rounds"
    )
    return table(title, head, rows)


def _against_rivals(rounds: list[dict[str, float]], seconds: dict[str, float]) -> str:
    prefill = seconds["prefill 144"]
    whole = seconds["tower"] + seconds["prefill 576"]
    rows = [["none (576 tokens)", "-", f"{seconds['tower']:.2f}", "-", f"{whole:.2f}", "1.00"]]
    for name in _REDUCERS:
        own = seconds[name] + (seconds["attention extraction"] if name == "attention" else 0)
        total = seconds["tower"] + own + prefill
        rows.append(
            [
                name,
                f"{1e3 * own:.2f}",
                f"{seconds['tower']:.2f}",
                f"{own / seconds['tower']:.2%}",
                f"{total:.2f}",
                f"{whole / total:.2f}",
            ]
        )
    small = seconds["tower, half the side"]
    rows.append(
        ["downsampling", "-", f"{small:.2f}", "-", f"{small + prefill:.2f}", f"{whole / (small + prefill):.2f}"]
    )
    head = ("to 144 tokens by", "own time, ms", "tower, s", "own time / tower", "all three, s", "times faster")
    return table("The rivals' own cost on 24 x 24 x 1024 features, in the same rounds", head, rows)


def _span(rounds: list[dict[str, float]], name: str) -> str:
    values = [each[name] for each in rounds]
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _ratio(rounds: list[dict[str, float]], above: str, below: str) -> str:
    """Median of the rounds' own ratios."""
    return f"{median(each[above] / each[below] for each in rounds):.2f}"
