"""Time and memory of requests on a loaded model, with a plain loop that is the same for every model."""

import time
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One request, all rows at once.

    Attributes:
        ttft_s: From the model's inputs to the first token of every row: vision, projector, compressor, fusion,
            prefill. Making the inputs of an image file is not in it.
        ttft_cpu_s: Processor time of the same, all threads together: steadier on a machine that is shared.
        decode_s: Of all later tokens.
        num_steps: Later tokens of each row.
    """

    ttft_s: float
    ttft_cpu_s: float
    decode_s: float
    num_steps: int


@torch.inference_mode()
def timed_request(model: Any, inputs: dict[str, Tensor], num_new_tokens: int) -> Timing:
    """Greedy decoding with the model's own cache; end tokens do not end it, so every run does the same work."""
    last = last_position(model.device)
    synchronize(model.device)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    output = model(**inputs, use_cache=True, logits_to_keep=last)
    token_ids = output.logits[:, -1:].argmax(-1)
    synchronize(model.device)
    first_s, first_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(num_new_tokens - 1):
        output = model(input_ids=token_ids, past_key_values=output.past_key_values, use_cache=True)
        token_ids = output.logits[:, -1:].argmax(-1)
    synchronize(model.device)
    return Timing(
        ttft_s=first_s - start_s, ttft_cpu_s=first_cpu_s - start_cpu_s, decode_s=time.perf_counter() - first_s,
        num_steps=num_new_tokens - 1,
    )  # fmt: skip


def last_position(device: torch.device) -> Tensor:
    """`logits_to_keep` of a prompt, the same for every model.

    Not the number 1: that gives the head a strided slice, for which torch's bfloat16 product on the CPU first copies
    the whole head (seconds for 152 thousand words); an index gives it a tensor of its own.
    """
    return torch.tensor([-1], device=device)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU has done already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Starts a new peak, so that what loading took beside the weights does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # Not Linux, or not allowed: the peak of the whole process is told instead.


def peak_bytes(device: torch.device) -> int:
    """Most memory since `reset_peak`: resident of the process, or torch's own on a GPU; weights included."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return getrusage(RUSAGE_SELF).ru_maxrss * 1024
