"""Distillations in processes of their own, some of them several for one, some killed.

python training_process.py WAVES.json: a list of waves, each a list of runs that go on at once; prints their exit codes.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401  # loaded before the forks
import torch
from safetensors.torch import save_file
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from conftest import make_batch, make_llava

from verbdistill import DistillConfig, distill
from verbdistill.loop.ranks import rank, world_size

ROWS = 8


def uneven_batch(step):
    """Rows with one or two response tokens, so that parts of a batch weigh differently."""
    batch = make_batch(step, num_images=ROWS)
    batch["labels"][::3, -1] = -100
    return batch


def part(batch, place, parts):
    return {name: value[place::parts] for name, value in batch.items()}


def split_batches(accumulation_steps):
    """The rows of a step, dealt out to its micro-batches, and of one to the processes."""

    def batches(index):
        step, place = divmod(index, accumulation_steps)
        return part(part(uneven_batch(step), place, accumulation_steps), rank(), world_size())

    return batches


def run(told):
    if told.get("rank") is not None:
        store = f"file://{told['store']}"
        dist.init_process_group("gloo", init_method=store, rank=told["rank"], world_size=told["world_size"])
    torch.manual_seed(told.get("rank") or 0)
    config = DistillConfig(**told["config"])
    student = make_llava(2, seed=2)
    kill = told.get("kill")

    begun = []

    def show(phase, done, _total, _loss):
        begun.append([phase, done])
        if kill and [phase, done] == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    folder = told.get("checkpoints")
    result = distill(
        make_llava(4, seed=1),
        student,
        split_batches(config.accumulation_steps),
        config,
        checkpoint_dir=None if folder is None else Path(folder),
        on_progress=show,
    )
    weights = {name: value.detach().clone() for name, value in student.named_parameters()}
    save_file(weights, f"{told['out']}.safetensors")
    Path(f"{told['out']}.json").write_text(json.dumps({"losses": result.losses, "matches": result.matches}))
    Path(f"{told['out']}.begun").write_text(json.dumps(begun[0]))
    if dist.is_initialized():
        dist.destroy_process_group()


def fork(told):
    """Forked here, where torch is loaded but no thread has started: a process that loads it takes seconds."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        run(told)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    codes = {}
    for wave in json.loads(Path(sys.argv[1]).read_text()):
        started = {told["out"]: fork(told) for told in wave}
        for out, process in started.items():
            codes[out] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    sys.stdout.write(json.dumps(codes))
