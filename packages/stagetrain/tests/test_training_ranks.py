import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("ddp_script.py")
TIMEOUT_S = 240


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def launch(script: Path, num_ranks: int, *arguments: object) -> list[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if num_ranks > 1:
        port = str(free_port())
        environment |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(num_ranks):
        own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else environment
        command = [sys.executable, str(script), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return started


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ranks")
    runs = {"ranks": (2, 4, 1), "parts": (1, 4, 2), "whole": (1, 8, 1)}
    started = {
        name: launch(SCRIPT, num_ranks, root / name, batch, parts) for name, (num_ranks, batch, parts) in runs.items()
    }
    try:
        for name, processes in started.items():
            for process in processes:
                output, _ = process.communicate(timeout=TIMEOUT_S)
                assert process.returncode == 0, f"{name}: {output[-3000:]}"
    finally:
        for processes in started.values():
            for process in processes:
                process.kill()
                process.wait()
    return {name: root / name for name in runs}


def difference(first: Path, second: Path) -> float:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(folders: dict[str, Path]) -> None:
    for name in ("ranks", "parts"):
        whole = folders["whole"]
        assert difference(folders[name] / "one-gradients.safetensors", whole / "one-gradients.safetensors") < 1e-6
        assert difference(folders[name] / "one-losses.safetensors", whole / "one-losses.safetensors") < 1e-6


def test_a_rank_without_images_and_frozen_stages_neither_hang_nor_differ(folders: dict[str, Path]) -> None:
    ranks, parts = folders["ranks"], folders["parts"]
    for name in ("staged.safetensors", "staged-losses.safetensors"):
        assert difference(ranks / name, parts / name) < 1e-5
    losses = load_file(ranks / "staged-losses.safetensors")["losses"]
    assert len(losses) == 8
    # 8 steps of 8 samples are three epochs of 21, and a bit.
    assert load_file(ranks / "staged-losses.safetensors")["skipped"] >= 3
    assert losses[-1] < losses[0]


def test_several_processes_go_on_from_a_checkpoint_bit_for_bit(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        for suffix in ("", "-losses"):
            staged = load_file(folder / f"staged{suffix}.safetensors")
            resumed = load_file(folder / f"resumed{suffix}.safetensors")
            assert all(torch.equal(staged[name], resumed[name]) for name in staged)
    names = {path.name for path in (folders["ranks"] / "checkpoint-6").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "run.json", "optimizer.pt"} <= names


APART = """
import sys

import torch
from transformers import TrainingArguments

from stagetrain import StageTrainer, named_schedule
from stagetrain.errors import ConfigError

torch.cuda.is_available = lambda: False
args = TrainingArguments(output_dir=sys.argv[1], max_steps=1, report_to=[])
assert args.world_size == 1
try:
    StageTrainer(torch.nn.Linear(1, 1), args, named_schedule("plain", 2), [{}])
except ConfigError as error:
    print(error)
"""


def test_processes_that_would_each_train_alone_are_refused(tmp_path: Path) -> None:
    """Trainer does not know of the others without a GPU, unless it is told that there is none."""
    script = tmp_path / "apart.py"
    script.write_text(APART)
    started = launch(script, 2, tmp_path)
    try:
        for process in started:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert "use_cpu: expected true for 2 processes without GPUs, got False" in output
    finally:
        for process in started:
            process.kill()
            process.wait()
