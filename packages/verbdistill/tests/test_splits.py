"""However the rows of a step are split, the weights are the same; a killed run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("training_process.py")
SHORT = {
    "num_verbalization_steps": 3,
    "num_interaction_steps": 4,
    "num_sft_steps": 3,
    # Adam turns rounding of a gradient near zero into a step of any size below the rate.
    "verbalization_lr": 1e-4,
    "interaction_lr": 1e-4,
    "sft_lr": 1e-4,
    "num_warmup_steps": 1,
}
TUNINGS = {"full": {"lora_rank": None}, "lora": {"lora_rank": 4}}
KILLS = {
    "full": {"verbalization_teacher": 2, "interaction": 3, "sft": 2},
    "lora": {"verbalization_student": 1, "interaction": 2},
    "ranks": {"verbalization_teacher": 2, "interaction": 3},
}
KILLED = [(how, phase) for how in TUNINGS for phase in KILLS[how]]


class Runs:
    """Runs by name, in two waves: what is killed in the first goes on in the second."""

    def __init__(self, folder):
        self.folder = folder
        self.waves = [[], []]
        self.codes = {}

    def add(self, name, config, *, wave=0, processes=1, kill=None, checkpoints=None):
        for rank in range(processes):
            told = {"out": str(self.folder / f"{name}-{rank}"), "config": config}
            if checkpoints is not None:
                told["checkpoints"] = str(self.folder / checkpoints)
            if processes > 1:
                told |= {"rank": rank, "world_size": processes, "store": str(self.folder / f"{name}.store")}
            if rank == processes - 1:
                told["kill"] = kill
            self.waves[wave].append(told)

    def run(self):
        (self.folder / "waves.json").write_text(json.dumps(self.waves))
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(self.folder / "waves.json")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        self.codes = {Path(out).name: code for out, code in json.loads(done.stdout).items()}
        self.said = done.stderr

    def __getitem__(self, name):
        assert self.codes[name] == 0, self.said[-3000:]
        out = self.folder / name
        return load_file(f"{out}.safetensors"), json.loads(Path(f"{out}.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("splits"))
    for name, tuning in TUNINGS.items():
        config = SHORT | tuning
        made.add(f"{name}-whole", config)
        made.add(f"{name}-parts", config | {"accumulation_steps": 4})
        made.add(f"{name}-ranks", config, processes=2)
        made.add(f"{name}-recomputed", config | {"gradient_checkpointing": True})
        saved = config | {"save_steps": 1, "accumulation_steps": 2}
        made.add(f"{name}-unbroken", saved)
        for phase, step in KILLS[name].items():
            told = {"config": saved, "checkpoints": f"{name}-{phase}"}
            made.add(f"{name}-{phase}-killed", kill=[phase, step], **told)
            made.add(f"{name}-{phase}-resumed", wave=1, **told)
    for phase, step in KILLS["ranks"].items():
        told = {"config": SHORT | TUNINGS["lora"] | {"save_steps": 1}, "processes": 2, "checkpoints": f"ranks-{phase}"}
        made.add(f"ranks-{phase}-killed", kill=[phase, step], **told)
        made.add(f"ranks-{phase}-resumed", wave=1, **told)
    made.run()
    return made


def assert_close(first, second):
    for name, value in first[0].items():
        torch.testing.assert_close(second[0][name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert second[1]["matches"] == first[1]["matches"]
    for name, values in first[1]["losses"].items():
        assert second[1]["losses"][name] == pytest.approx(values, rel=1e-5, abs=1e-5), name


def assert_same(first, second):
    assert first[1] == second[1]
    for name, value in first[0].items():
        assert torch.equal(second[0][name], value), name


@pytest.mark.parametrize("tuning", TUNINGS)
def test_micro_batches_and_processes_share_a_step(runs, tuning):
    whole = runs[f"{tuning}-whole-0"]
    assert len(whole[1]["matches"]) == 4
    assert_close(whole, runs[f"{tuning}-parts-0"])
    assert_close(whole, runs[f"{tuning}-ranks-0"])
    assert_same(runs[f"{tuning}-ranks-0"], runs[f"{tuning}-ranks-1"])


@pytest.mark.parametrize("tuning", TUNINGS)
def test_activations_computed_again_are_the_same(runs, tuning):
    assert_close(runs[f"{tuning}-whole-0"], runs[f"{tuning}-recomputed-0"])


@pytest.mark.parametrize(("tuning", "phase"), KILLED)
def test_a_run_killed_inside_a_phase_ends_with_the_same_bits(runs, tuning, phase):
    assert runs.codes[f"{tuning}-{phase}-killed-0"] == -signal.SIGKILL
    assert_same(runs[f"{tuning}-unbroken-0"], runs[f"{tuning}-{phase}-resumed-0"])
    begun = (runs.folder / f"{tuning}-{phase}-resumed-0.begun").read_text()
    assert json.loads(begun) == [phase, KILLS[tuning][phase] + 1]
    left = sorted(path.name for path in (runs.folder / f"{tuning}-{phase}" / phase).iterdir())
    assert left == ["finished", "run.json"]


@pytest.mark.parametrize("phase", KILLS["ranks"])
def test_two_processes_one_of_them_killed_end_with_the_same_bits(runs, phase):
    assert runs.codes[f"ranks-{phase}-killed-1"] == -signal.SIGKILL
    assert runs.codes[f"ranks-{phase}-killed-0"] != 0
    for rank in (0, 1):
        assert_same(runs["lora-ranks-0"], runs[f"ranks-{phase}-resumed-{rank}"])
