"""The profile beside what the paper prints, and beside torch's own flop counter at full shape; prints a table.

    python packages/edgevlm/benchmarks/profile_table.py [--image 640x480] [--out FILE.json]

The models are whole but for their weights (one shared number): torch counts a real forward in which matrix products
give zeros at once. About a minute and 1 GB.

InternVL2.5-2B's printed figures are no whole model's: 1.88 leaves out its separate head (2.054 with it), and 4,091.9 is
0.4% over what the encoder and projector alone take for the 13 tiles of a 640x480 image.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from edgevlm import preset_config, profile
from edgevlm.profiling.inputs import request_inputs
from edgevlm.profiling.layouts import ImageSize
from edgevlm.profiling.macs import forward_flops
from edgevlm.profiling.skeletons import ShapesOnly, hollow_model

# Preset: text tokens; GMACs ("GFLOPS") and parameters in 2^30 ("B") as Tables 4 and 7 print them.
ROWS: dict[str, tuple[int, float, float]] = {
    "auroraedge-v-2b:none": (28, 248.6, 1.83),
    "auroraedge-v-2b:cross": (28, 250.5, 1.86),
    "auroraedge-v-2b:decoder": (28, 261.9, 1.88),
    "auroraedge-v-2b:combined": (28, 263.8, 1.90),
    "qwen2-vl-2b": (28, 1645.4, 2.06),
    "qwen2.5-vl-3b": (26, 2288.7, 3.50),
    "internvl2.5-2b": (28, 4091.9, 1.88),
}


def row(name: str, image: ImageSize) -> dict[str, Any]:
    num_text, printed, printed_params = ROWS[name]
    config = preset_config(name)
    counted = profile(config, num_text_tokens=num_text, image=image)
    with ShapesOnly():
        measured = forward_flops(hollow_model(config), request_inputs(config, image=image, num_text_tokens=num_text))
    return {
        "preset": name, "visual": counted.layout.description, "visual_tokens": counted.layout.num_seen,
        "text_tokens": num_text, "params": counted.num_params, "params_2_30": counted.num_params / 2**30,
        "params_printed": printed_params, "gmacs_linear": counted.macs_linear / 1e9, "gmacs_printed": printed,
        "gmacs_linear_as_run": counted.macs_linear_as_run / 1e9, "gflops": counted.flops / 1e9,
        "gflops_torch": measured / 1e9, "gflops_off": counted.flops / measured - 1,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=ImageSize.parse, default=ImageSize(width=640, height=480))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| preset | visual tokens | text | parameters / 2^30 (printed) | linear GMACs (printed) | as run | GFLOPs | "
          "torch's counter | off |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    for name in ROWS:
        found = row(name, arguments.image)
        rows.append(found)
        params = f"{found['params_2_30']:.3f} ({found['params_printed']:.2f})"
        numbers = " | ".join(f"{found[field]:,.1f}" for field in ("gmacs_linear_as_run", "gflops", "gflops_torch"))
        print(f"| {name} | {found['visual_tokens']:,} ({found['visual']}) | {found['text_tokens']} | {params} | "
              f"{found['gmacs_linear']:,.1f} ({found['gmacs_printed']:,}) | {numbers} | {found['gflops_off']:.2%} |",
              flush=True)  # fmt: skip
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"image": str(arguments.image), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
