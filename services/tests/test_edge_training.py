"""Edge models are trained by stagetrain: by its command, in stages, compressed, and as a job."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from edgevlm import EdgeModelSpec, EdgeVlmForConditionalGeneration, build_from_llava
from edgevlm.serving.engine import Engine
from edgevlm.wire import spec_to_proto
from vlmpress.data import Record, Turn, write_records
from vlmpress.job.v1 import job_pb2
from vlmpress_services.job_work import check_spec, do_work

NUM_STEPS = 6
SCHEDULE = """
schedule:
  stages:
    - {fraction: 0.34, layer: 1, stride: 2, trainable: [connectors]}
    - {fraction: 0.33, compressor: average_2d, layer: 1, stride: 4}
    - {fraction: 0.33}
"""
CONFIG = f"""
{SCHEDULE}
data: {{group_by_image: true}}
training: {{max_steps: {NUM_STEPS}, learning_rate: 0.01, per_device_train_batch_size: 2, use_cpu: true, save_steps: 2}}
"""


@pytest.fixture(scope="module", params=["none", "combined"])
def edge_directory(request: Any, tiny_llava_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edge model made from the tiny Llava, 16 tokens an image compressed to 4."""
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory)
    processor = AutoProcessor.from_pretrained(tiny_llava_directory)
    model, processor = build_from_llava(llava, processor, num_compressed_tokens=4, fusion=request.param)
    directory = tmp_path_factory.mktemp("edge") / request.param
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture
def records(tmp_path: Path) -> Path:
    made = []
    for number in range(4):
        name = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 32), (60 * number, 90, 200)).save(name)
        turns = (Turn("is it a circle ?", "no" if number % 2 else "yes"), Turn("what color is the shape ?", "red"))
        made += [Record(f"{number}.{place}", (name,), (turn,), "train") for place, turn in enumerate(turns)]
    made.append(Record("text", (), (Turn("is it blue ?", "no"),), "train"))
    write_records(tmp_path / "records.jsonl", made, tmp_path)
    return tmp_path / "records.jsonl"


def parts_changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Parts of the model with a weight that is another one now."""
    return {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}


def test_the_command_trains_an_edge_model_in_stages(
    edge_directory: Path, records: Path, tmp_path: Path, png: bytes
) -> None:
    config, out = tmp_path / "run.yaml", tmp_path / "out"
    config.write_text(CONFIG)
    places = [f"model={edge_directory}", f"data.records={records}", f"out={out}"]
    command = [sys.executable, "-P", "-c", "import sys; from stagetrain.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "train", str(config), *places, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["steps"], told["skipped"]) == (NUM_STEPS, 0)
    assert all(speed > 0 for speed in told["tokens_per_second"])
    trained = EdgeVlmForConditionalGeneration.from_pretrained(out)
    before = EdgeVlmForConditionalGeneration.from_pretrained(edge_directory).state_dict()
    changed = {
        name.split(".")[1] for name, value in trained.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {"multi_modal_projector", "compressor", "language_model"} <= changed
    assert list(Engine.load(out).generate(png, "is it a circle ?", 2))[-1].num_visual_tokens == 4


def test_a_job_trains_an_edge_model(edge_directory: Path, store: Any, add_dataset: Any) -> None:
    import shutil

    model = EdgeVlmForConditionalGeneration.from_pretrained(edge_directory)
    with store.draft() as draft:
        shutil.copytree(edge_directory, draft.path, dirs_exist_ok=True)
        start = draft.commit(spec_to_proto(EdgeModelSpec.of(model.config)), producer=("test", "0"))
    settings = "training: {max_steps: 3, per_device_train_batch_size: 2, learning_rate: 0.01}\nfreeze: [vision]\n"
    job = job_pb2.TrainJob(
        model=start.digest, dataset=add_dataset().digest, scheme="auroraedge", settings_yaml=settings
    )
    spec = job_pb2.JobSpec(train=job)
    check_spec(spec, store)
    made = store.verify(do_work(spec, store, lambda *_: None))
    assert made.manifest.kind == "edge_model"
    assert made.manifest.edge_model == start.manifest.edge_model
    before, after = (load_file(artifact.path / "model.safetensors") for artifact in (start, made))
    changed = parts_changed(before, after)
    assert "compressor" in changed
    assert "vision_tower" not in changed
