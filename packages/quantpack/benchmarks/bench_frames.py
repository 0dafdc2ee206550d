"""What to put codes and kept tensors through: zstd settings, frame sizes, ways to lay out bfloat16; prints JSON.

    python benchmarks/bench_frames.py [--weights FILE.safetensors ...] [--size 2048] [--rounds 5]

Data: codes of a Gaussian matrix at each granularity, its exponents in bfloat16, and codes, codes of scaled weights and
exponents of all matrices of each file. `over_entropy` is what the frames take beyond the order-0 entropy of codes or
exponents, as a share of it; `huffman_over_entropy` is the same for an ideal Huffman code of the bytes. Speeds are of
packed bytes, one thread, the best of all rounds. The last table gives bytes before over bytes after for floating
tensors cast to a dtype.
"""

import argparse
import heapq
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load_file
from torch import Tensor

from quantpack import Scheme, quantize_tensor
from quantpack.container import frames
from quantpack.container.packed import pack_tensor
from quantpack.container.planes import as_bytes, split_planes
from quantpack.inspecting import entropy_bits

SCHEMES = {
    "group 128": Scheme(),
    "channel": Scheme(granularity="channel"),
    "8 rows": Scheme(granularity="rows", num_rows=8),
    "agq": Scheme(granularity="agq"),
    "tensor": Scheme(granularity="tensor"),
    "tensor symmetric": Scheme(granularity="tensor", symmetric=True),
    "group 128, 3 bits": Scheme(bits=3),
}
SCALED = Scheme(granularity="rows", num_rows=2, symmetric=True)
FRAME_KIB = (64, 128, 256, 512, 1024, 4096)


def settings() -> dict[str, zstandard.ZstdCompressionParameters]:
    """Levels, and searches for matches starved to a different degree."""
    found = {
        f"level {level}": zstandard.ZstdCompressionParameters.from_level(level, write_checksum=1)
        for level in (1, 3, 9, 19, -1, -5)
    }
    for strategy in ("fast", "greedy", "btultra2"):
        for min_match, hash_log in ((5, 6), (7, 6), (7, 14)):
            found[f"{strategy}, min_match {min_match}, hash_log {hash_log}"] = starved(strategy, min_match, hash_log)
    found["fast, min_match 7, hash_log 6, target_length 1"] = starved("fast", 7, 6, target_length=1)
    found["fast, min_match 7, hash_log 6, window_log 10"] = starved("fast", 7, 6, window_log=10)
    found["quantpack"] = frames._PARAMETERS
    found["quantpack, skewed"] = frames._SKEWED_PARAMETERS
    return found


def starved(
    strategy: str, min_match: int, hash_log: int, *, target_length: int = 0, window_log: int = 20
) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(
        strategy=getattr(zstandard, f"STRATEGY_{strategy.upper()}"),
        min_match=min_match,
        hash_log=hash_log,
        chain_log=6,
        search_log=1,
        window_log=window_log,
        target_length=target_length,
        write_checksum=1,
    )


def measure(
    packed: list[np.ndarray],
    parameters: zstandard.ZstdCompressionParameters,
    step: int,
    rounds: int,
    entropy: Callable[[np.ndarray], float],
) -> Any:
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    decompressor = zstandard.ZstdDecompressor()
    pieces = [part.data[at : at + step] for part in packed for at in range(0, len(part), step)]
    num_bytes = sum(map(len, packed))
    made: list[bytes] = []

    def encode() -> None:
        made[:] = [compressor.compress(piece) for piece in pieces]

    def decode() -> None:
        for frame in made:
            decompressor.decompress(frame)

    encode_s, decode_s = (best_time(work, rounds) for work in (encode, decode))
    size = sum(map(len, made))
    least = sum(entropy(part) / 8 for part in packed)
    return {
        "cr": round(num_bytes / size, 4),
        "over_entropy": round(size / least - 1, 4),
        "encode_mb_s": round(num_bytes / encode_s / 1e6),
        "decode_mb_s": round(num_bytes / decode_s / 1e6),
    }


def code_entropy(packed: np.ndarray) -> float:
    pairs = np.bincount(packed, minlength=256).reshape(16, 16)
    return 2 * len(packed) * entropy_bits((pairs.sum(0) + pairs.sum(1)).tolist())


def byte_entropy(data: np.ndarray) -> float:
    return len(data) * entropy_bits(np.bincount(data).tolist())


def exponents(tensors: Iterable[Tensor]) -> list[np.ndarray]:
    return [np.frombuffer(split_planes(as_bytes(tensor), torch.bfloat16)[1], np.uint8) for tensor in tensors]


def best_time(work: Callable[[], None], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def all_data(files: list[Path], size: int) -> Iterator[tuple[str, list[np.ndarray], Callable[[np.ndarray], float]]]:
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(size, size, generator=generator)
    for name, scheme in SCHEMES.items():
        yield f"Gaussian {size} x {size}, {name}", codes([gaussian], scheme), code_entropy
    yield f"Gaussian {size} x {size}, exponents", exponents([gaussian.to(torch.bfloat16)]), byte_entropy
    for file in files:
        matrices = [tensor for tensor in load_file(file).values() if tensor.dim() == 2 and tensor.is_floating_point()]
        for name in ("group 128", "tensor"):
            yield f"{file.stem}, {name}", codes(matrices, SCHEMES[name]), code_entropy
        yield f"{file.stem}, scaled 2 rows symmetric", codes(map(scaled, matrices), SCALED), code_entropy
        yield f"{file.stem}, scaled tensor", codes(map(scaled, matrices), SCHEMES["tensor"]), code_entropy
        yield f"{file.stem}, exponents", exponents(matrix.to(torch.bfloat16) for matrix in matrices), byte_entropy


def scaled(matrix: Tensor) -> Tensor:
    """Columns times the square root of seeded lognormal factors, as weight scaling leaves them."""
    factors = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0)).exp()
    return (matrix.float() * factors.sqrt()).to(torch.bfloat16)


def huffman_bytes(packed: np.ndarray) -> float:
    """What an ideal Huffman code of the bytes takes, its table left out."""
    heap = sorted(np.bincount(packed)[np.unique(packed)].tolist())
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits / 8


def codes(matrices: Iterable[Tensor], scheme: Scheme) -> list[np.ndarray]:
    return [pack_tensor(quantize_tensor(matrix, scheme)).codes.numpy() for matrix in matrices]


def kept_ratios(file: Path) -> dict[str, dict[str, float]]:
    tensors = [tensor for tensor in load_file(file).values() if tensor.is_floating_point()]
    table = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        sizes = {"as it lies": 0, "bytes apart": 0, "exponent apart": 0}
        for tensor in tensors:
            data = as_bytes(tensor.to(dtype))
            columns = data.reshape(-1, dtype.itemsize)
            apart = [np.ascontiguousarray(columns[:, number]).data for number in range(dtype.itemsize)]
            sizes["as it lies"] += len(frames.compress_frame(data.data))
            sizes["bytes apart"] += len(frames.compress_pieces(apart, len(data)))
            sizes["exponent apart"] += len(frames.compress_pieces(split_planes(data, dtype), len(data)))
        num_bytes = sum(tensor.numel() for tensor in tensors) * dtype.itemsize
        table[str(dtype).removeprefix("torch.")] = {name: round(num_bytes / size, 4) for name, size in sizes.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="zstd settings, frame sizes and layouts, measured.")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="safetensors files of trained weights")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the Gaussian matrix")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION)), "settings": {}}
    report |= {"huffman_over_entropy": {}, "frame_kib": {}}
    for name, packed, entropy in all_data(arguments.weights, arguments.size):
        report["settings"][name] = {
            setting: measure(packed, parameters, 1 << 20, arguments.rounds, entropy)
            for setting, parameters in settings().items()
        }
        least = sum(entropy(part) / 8 for part in packed)
        report["huffman_over_entropy"][name] = round(sum(map(huffman_bytes, packed)) / least - 1, 4)
        if "group 128" in name and "bits" not in name:
            report["frame_kib"][name] = {
                kib: measure(packed, frames._PARAMETERS, kib << 10, arguments.rounds, entropy) for kib in FRAME_KIB
            }
    report["kept"] = {file.stem: kept_ratios(file) for file in arguments.weights}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
