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
from transformers import AutoProcessor, LlavaForConditionalGeneration, TrainingArguments

from edgevlm import EdgeModelSpec, EdgeVlmForConditionalGeneration, build_from_llava
from edgevlm.serving.engine import Engine
from edgevlm.wire import spec_to_proto
from stagetrain import ConversationCollator, ImageGroups, named_schedule, train
from vlmpress.data import Record, Turn, load_records, write_records
from vlmpress.job.v1 import job_pb2
from vlmpress_services.jobs.work import check_spec, do_work

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


def command(*arguments: object) -> Any:
    """What `stagetrain train` says of itself."""
    code = "import sys; from stagetrain.cli import main; sys.exit(main())"
    texts = [str(argument) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "train", *texts, "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_compressor_is_pretrained_alone_and_then_trained_in_auroraedges_stages(
    tiny_llava_directory: Path, records: Path, tmp_path: Path
) -> None:
    llava = LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory)
    model, processor = build_from_llava(
        llava, AutoProcessor.from_pretrained(tiny_llava_directory), num_compressed_tokens=4
    )
    model.save_pretrained(tmp_path / "edge")
    processor.save_pretrained(tmp_path / "edge")
    small = ["training.bf16=false", "training.use_cpu=true", "training.dataloader_num_workers=0"]
    data = f"data.records={records}"
    places = [f"model={tmp_path / 'edge'}", data, f"out={tmp_path / 'pretrained'}", *small]
    run = ["training.num_train_epochs=4", "training.per_device_train_batch_size=3", "training.learning_rate=0.01"]
    told = command("compressor_pretraining", *places, *run)
    assert told["steps"] == 4 * 3
    before = EdgeVlmForConditionalGeneration.from_pretrained(tmp_path / "edge").state_dict()
    pretrained = EdgeVlmForConditionalGeneration.from_pretrained(tmp_path / "pretrained")
    head = {name for name in pretrained.state_dict() if name.startswith("model.reconstruction.")}
    after = {name: value for name, value in pretrained.state_dict().items() if name not in head}
    assert head
    assert parts_changed(before, after) == {"compressor"}
    assert pretrained.config.text_loss_weight == 0
    # Tables 1 and 2 on 9 records, in batches of 4, 4 and 2: 7, 7 and 9 steps.
    change = "model_config={reconstruction: none, text_loss_weight: 1.0}"
    places = [f"model={tmp_path / 'pretrained'}", data, f"out={tmp_path / 'trained'}", *small]
    told = command("auroraedge", *places, change, "training.per_device_train_batch_size=4")
    assert told["steps"] == 7 + 7 + 9
    trained = EdgeVlmForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert trained.model.reconstruction is None
    changed = parts_changed(after, trained.state_dict())
    assert changed == {"vision_tower", "multi_modal_projector", "compressor", "fusion", "language_model"} | (
        {"weight"} & changed
    )


def test_the_error_of_images_is_that_of_the_whole_batch(
    tiny_llava_directory: Path, records: Path, tmp_path: Path
) -> None:
    """A batch of images with answers of one length, and text, in one part or in five."""
    processor, losses, samples = None, [], ImageGroups(load_records(records, records.parent))
    for size in (5, 1):
        llava = LlavaForConditionalGeneration.from_pretrained(tiny_llava_directory)
        model, processor = build_from_llava(
            llava,
            AutoProcessor.from_pretrained(tiny_llava_directory),
            num_compressed_tokens=4,
            reconstruction="pixels",
            reconstruction_loss_weight=0.5,
        )
        args = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=size, use_cpu=True, report_to=[],
            gradient_accumulation_steps=5 // size, save_strategy="no", learning_rate=0.01, optim="sgd",
        )  # fmt: skip
        result = train(model, samples, ConversationCollator(processor, 2), named_schedule("plain", 2), args)
        losses.append(result.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
