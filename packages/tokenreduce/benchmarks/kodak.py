"""Does sigma rank photographs as measures of their complexity do? A table, then one JSON object.

Run: python benchmarks/kodak.py --data DIR [--encoder patches:P[:SIDE|:keep] | --encoder MODEL_DIR] ... [--tile-px N]
DIR holds images and manifest.jsonl: one object a line with `file` and the measures. Every encoder is what
`tokenreduce plan --encoder` takes. With --tile-px images are also cut into squares of N pixels, encoded one by one and
put together again on one grid, as AnyRes does: an encoder for small images then sees the photograph's own detail.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranking import spearman

from tokenreduce import encode_files, open_encoder, sigmas_of_grids
from tokenreduce.encoders.encoder import Encoder
from tokenreduce.encoders.images import open_image

MEASURES = ("jpeg_bpp", "grad_mean", "grad_entropy", "flat_frac")
STATISTICS = (("residual", "image"), ("residual", "none"), ("literal", "image"), ("literal", "none"))
ENCODERS = ("patches:14", "patches:14:keep")
FACTORS = (1, 2, 3)
NUM_PERMUTATIONS = 100_000


def critical_value(num_images: int, level: float = 0.05) -> float:
    """The |correlation| that so many unrelated images reach with probability `level`, by permutation."""
    random = np.random.default_rng(0)
    centred = np.arange(num_images) - (num_images - 1) / 2
    shuffled = random.permuted(np.tile(centred, (NUM_PERMUTATIONS, 1)), axis=1)
    return float(np.quantile(np.abs(shuffled @ centred) / (centred @ centred), 1 - level))


def whole_grids(encoder: Encoder, paths: list[Path]) -> list[torch.Tensor]:
    """Each image as the encoder takes it."""
    return [views[0].features for views in encode_files(encoder, paths)]


def tiled_grids(encoder: Encoder, paths: list[Path], side: int) -> list[torch.Tensor]:
    """Each image's whole tiles of side x side pixels, their features on one grid; what is left at the edges is cut."""
    grids = []
    for path in paths:
        image = open_image(path)
        rows = []
        for top in range(0, image.height - side + 1, side):
            tiles = [
                image.crop((left, top, left + side, top + side)) for left in range(0, image.width - side + 1, side)
            ]
            rows.append(torch.cat([views[0].features for views in encoder.encode(tiles)], dim=1))
        grids.append(torch.cat(rows))
    return grids


def measure(grids: list[torch.Tensor], complexity: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row a statistic: sigma(2) of every image, and its correlation with every measure."""
    rows = []
    for mode, normalization in STATISTICS:
        sigmas = sigmas_of_grids(grids, FACTORS, mode, normalization)[:, 1].double().numpy()
        correlations = {name: spearman(sigmas, values) for name, values in complexity.items()}
        row = {"mode": mode, "normalization": normalization, "spearman": correlations, "sigma_2": sigmas.tolist()}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", action="append", help="may be repeated; raw patches by default")
    parser.add_argument("--tile-px", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = (options.data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    paths = [options.data / record["file"] for record in records]
    complexity = {name: np.array([record[name] for record in records], dtype=float) for name in MEASURES}
    critical = critical_value(len(paths))
    found = []
    for name in options.encoder or ENCODERS:
        encoder = open_encoder(name)
        found.append((name, None, whole_grids(encoder, paths)))
        if options.tile_px:
            found.append((name, options.tile_px, tiled_grids(encoder, paths, options.tile_px)))
    print(f"Spearman correlation of sigma(2) over {len(paths)} images; |rho| > {critical:.3f} has p < .05")
    encoders = []
    for name, tile_px, grids in found:
        rows = measure(grids, complexity)
        shape = "x".join(str(size) for size in grids[0].shape)
        encoders.append({"encoder": name, "tile_px": tile_px, "grid": list(grids[0].shape), "rows": rows})
        print(f"\n{Path(name).name[:24]}, {f'tiles of {tile_px} px' if tile_px else 'whole images'}, {shape}")
        print(f"{'':<18}" + "".join(f"{measure:>14}" for measure in MEASURES))
        for row in rows:
            values = "".join(f"{row['spearman'][measure]:>+14.3f}" for measure in MEASURES)
            print(f"{row['mode']}, {row['normalization']:<8}".ljust(18) + values)
    result = {
        "num_images": len(paths),
        "critical_value_p05": critical,
        "measures_among_themselves": {
            f"{a}~{b}": spearman(complexity[a], complexity[b]) for a in MEASURES for b in MEASURES if a < b
        },
        "encoders": encoders,
    }
    print(f"\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
