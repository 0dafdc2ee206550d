import json

import pytest
import torch

from verbdistill import CheckpointError, DistillConfig, NonFiniteLossError, finetune
from verbdistill.loop.checkpointing import Checkpoints


def config(**changes):
    values = {"num_verbalization_steps": 0, "num_interaction_steps": 0, "num_sft_steps": 6, "save_steps": 2}
    return DistillConfig(**values, **changes)


class Stopped(BaseException):
    pass


def stop_at(step):
    def show(_phase, done, _total, _loss):
        if done == step:
            raise Stopped

    return show


@pytest.fixture
def broken(llava, batches, tmp_path):
    """Folder of a run that was stopped after its third step."""
    with pytest.raises(Stopped):
        finetune(llava(2, seed=2), batches, config(), checkpoint_dir=tmp_path, on_progress=stop_at(3))
    return tmp_path


def test_only_the_newest_checkpoint_of_a_phase_is_kept(llava, batches, broken):
    assert sorted(path.name for path in broken.iterdir()) == ["run.json", "step-00000002"]
    seen = []
    finetune(
        llava(2, seed=2),
        batches,
        config(),
        checkpoint_dir=broken,
        on_progress=lambda _phase, done, _total, _loss: seen.append(done),
    )
    assert seen == [3, 4, 5, 6]
    assert sorted(path.name for path in broken.iterdir()) == ["finished", "run.json"]


def test_another_interval_goes_on_and_other_settings_do_not(llava, batches, broken):
    with pytest.raises(CheckpointError, match="another configuration"):
        finetune(llava(2, seed=2), batches, config(sft_lr=1.0), checkpoint_dir=broken)
    with pytest.raises(CheckpointError, match="other models"):
        finetune(llava(2, seed=9), batches, config(), checkpoint_dir=broken)
    several = DistillConfig(num_verbalization_steps=0, num_interaction_steps=0, num_sft_steps=6, save_steps=5)
    assert len(finetune(llava(2, seed=2), batches, several, checkpoint_dir=broken)) == 6


@pytest.mark.parametrize("file", ["student.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_damaged_checkpoints_are_named(llava, batches, broken, file, how):
    path = broken / "step-00000002" / file
    data = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        data[-1 if file == "state.json" else len(data) // 2] ^= 1
        path.write_bytes(data if how == "flipped" else data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=file):
        finetune(llava(2, seed=2), batches, config(), checkpoint_dir=broken)


def test_what_a_kill_left_half_written_is_swept_up(llava, batches, broken):
    (broken / ".step-00000004.x.tmp").mkdir()
    (broken / ".step-00000004.x.tmp" / "student.safetensors").write_bytes(b"half")
    (broken / ".run.json.x.tmp").write_bytes(b"half")
    finetune(llava(2, seed=2), batches, config(), checkpoint_dir=broken)
    assert not list(broken.glob(".*"))


def test_a_nan_loss_leaves_the_last_good_checkpoint(llava, batches, tmp_path):
    def poisoned(index):
        batch = batches(index)
        if index == 4:
            batch["pixel_values"] = torch.full_like(batch["pixel_values"], float("nan"))
        return batch

    student = llava(2, seed=2)
    with pytest.raises(NonFiniteLossError, match=r"sft: expected a finite loss at step 4 \(micro-batch 4\), got nan"):
        finetune(student, poisoned, config(), checkpoint_dir=tmp_path)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "step-00000004"]
    expected, got = llava(2, seed=2), llava(2, seed=2)
    finetune(expected, batches, config())
    finetune(got, batches, config(), checkpoint_dir=tmp_path)
    assert torch.equal(expected.lm_head.weight, got.lm_head.weight)


def test_infinite_gradients_stop_before_the_parameters_are_lost(llava, batches):
    student = llava(2, seed=2)
    student.model.language_model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteLossError, match=r"expected finite gradients at step 0 \(micro-batches 0 to 0\)"):
        finetune(student, batches, config())
    assert all(bool(torch.isfinite(parameter).all()) for parameter in student.parameters())


def test_a_file_that_is_no_state_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, "a" * 64)
    checkpoints.save_step(1, {"some": {"value": torch.ones(2)}}, {})
    (tmp_path / "step-00000001" / "state.json").write_text(json.dumps({"done": "1"}))
    with pytest.raises(CheckpointError, match="expected the state of a checkpoint"):
        checkpoints.last_step()
