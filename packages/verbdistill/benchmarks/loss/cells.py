"""What a cell runs, and how its memory and time are taken; a cell is one process."""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from loss.reference import gkd, naive, pair_by_pair
from torch import Tensor

from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.heads import Head
from verbdistill.losses.logit_l2 import pairwise_logit_l2
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.losses.sorted_distance import pairwise_sorted_distance
from verbdistill.losses.truncated import likeliest_words, truncated_pairwise_kl

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: forward and backward of a loss of random features under random heads."""

    loss: str
    num_words: int
    num_tokens: int
    hidden: int
    student_targets: int = 1
    teacher_targets: int = 1
    logits_mib: int = 256
    dtype: str = "float32"
    repeats: int = 1


@dataclass(frozen=True)
class Inputs:
    """Features of both sides, their heads, and labels."""

    teacher: list[Tensor]
    teacher_head: Head
    student: list[Tensor]
    student_head: Head
    labels: Tensor


def make_inputs(cell: Cell) -> Inputs:
    torch.manual_seed(0)
    dtype = getattr(torch, cell.dtype)
    # Logits of a spread of about 3: distributions that are neither flat nor certain.
    heads = [
        Head(torch.empty(cell.num_words, cell.hidden, dtype=dtype).normal_(std=3 * cell.hidden**-0.5)) for _ in range(2)
    ]
    features = [
        [torch.randn(cell.num_tokens, cell.hidden, dtype=dtype) for _ in range(count)]
        for count in (cell.teacher_targets, cell.student_targets)
    ]
    labels = torch.randint(cell.num_words, (cell.num_tokens,))
    return Inputs(features[0], heads[0], [part.requires_grad_() for part in features[1]], heads[1], labels)


def loss_of(cell: Cell, inputs: Inputs) -> Tensor:
    """Mean loss of a match of the first teacher targets in order, ready for backward."""
    budget = cell.logits_mib * MIB
    whole = (inputs.teacher, inputs.teacher_head, inputs.student, inputs.student_head)
    match = torch.eye(cell.student_targets, cell.teacher_targets) / cell.num_tokens
    weights = (inputs.teacher, inputs.teacher_head.weight, inputs.student, inputs.student_head.weight)
    last = (inputs.teacher[0], inputs.teacher_head, inputs.student[0], inputs.student_head)

    def truncated() -> Tensor:
        kept = [likeliest_words(part, inputs.teacher_head, 32, logits_bytes=budget) for part in inputs.teacher]
        words, log_p = zip(*kept, strict=True)
        return truncated_pairwise_kl(words, log_p, inputs.student, inputs.student_head, logits_bytes=budget).weighted(
            match
        )

    def chosen(pairs: list[list[Tensor]] | Tensor) -> Tensor:
        return torch.stack([pairs[number][number] for number in range(cell.student_targets)]).sum()

    def of_gkd(beta: float) -> Tensor:
        with torch.no_grad():
            theirs = inputs.teacher_head.logits(inputs.teacher[0])
        return gkd(theirs, inputs.student_head.logits(inputs.student[0]), beta)

    losses: dict[str, Callable[[], Tensor]] = {
        "pairwise_kl": lambda: pairwise_kl(*whole, logits_bytes=budget).weighted(match),
        "pairwise_logit_l2": lambda: pairwise_logit_l2(*whole, logits_bytes=budget).weighted(match),
        "pairwise_sorted_distance": lambda: pairwise_sorted_distance(*whole, logits_bytes=budget).weighted(match),
        "truncated_pairwise_kl": truncated,
        "last_kl": lambda: last_kl(*last, logits_bytes=budget),
        "ar_loss": lambda: ar_loss(inputs.student[0], inputs.student_head, inputs.labels, logits_bytes=budget),
        "naive": lambda: chosen(naive(*weights)),
        "pair_by_pair": lambda: chosen(pair_by_pair(*weights)),
        "gkd_kl": lambda: of_gkd(0.0),
        "gkd_jsd": lambda: of_gkd(0.5),
    }
    return losses[cell.loss]()


def measure(cell: Cell) -> dict[str, object]:
    """The loss, the norm of its gradient, CPU seconds of the fastest run, and peak memory above weights and inputs."""
    small = Cell(**{**asdict(cell), "num_words": 64, "num_tokens": 8, "hidden": 16})
    loss_of(small, make_inputs(small)).backward()  # libraries load their own memory here
    inputs = make_inputs(cell)
    before = start_peak()
    cpu, wall = [], []
    for _ in range(cell.repeats):
        for part in inputs.student:
            part.grad = None
        started = time.process_time(), time.perf_counter()
        loss = loss_of(cell, inputs)
        loss.backward()
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    gradients = [part.grad.float().norm() for part in inputs.student if part.grad is not None]
    return {
        "loss": loss.item(),
        "gradient_norm": torch.stack(gradients).norm().item(),
        "cpu_s": min(cpu),
        "wall_s": min(wall),
        "peak_bytes": peak() - before,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def start_peak() -> int:
    """Resident bytes now; the peak counts from here where Linux allows to reset it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return status("VmRSS")


def peak() -> int:
    try:
        return status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
