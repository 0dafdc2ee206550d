import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlmpress.artifact import Artifact
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress_services.store.local import LocalStore
from vlmpress_services.workers.ray_runner import RayRunner, ray_runner

PRODUCER = ("vlmpress-services", "0.1.0")


def start_server(store: Path, *options: str) -> Any:
    """A real `vlmpress serve` and the line it printed."""
    command = [sys.executable, "-m", "vlmpress_services.cli", "serve", "--listen", "127.0.0.1:0", "--store", str(store)]
    process = subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the server ended with exit code {process.wait()}"
    return SimpleNamespace(process=process, **json.loads(line))


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def launch() -> Iterator[Callable[..., Any]]:
    """Starts servers that do not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(store: Path, *options: str) -> Any:
        server = start_server(store, *options)
        started.append(server.process)
        return server

    yield begin
    for process in started:
        end(process)


@pytest.fixture(scope="session")
def model_store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """A store with a tiny Llava of random weights under the tag `tiny`."""
    import torch

    from vlmpress.data import Record, Turn
    from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower

    torch.set_num_threads(1)
    shape = TinyShape(image_px=32, hidden_size=32, language_intermediate_size=48, max_positions=256)
    turns = (Turn("what color is the shape ?", "red"), Turn("is it a circle ?", "yes"), Turn("is it blue ?", "no"))
    processor = build_processor([Record("1", (), turns)], shape)
    model = build_llava(build_tower(shape, seed=0), processor, shape, num_layers=2, seed=0)
    store = LocalStore(tmp_path_factory.mktemp("served") / "store")
    with store.draft() as draft:
        model.save_pretrained(draft.path)
        processor.save_pretrained(draft.path)
        store.tag("tiny", draft.commit(artifact_pb2.Model(model_type="llava"), producer=PRODUCER).digest)
    return store


@pytest.fixture(scope="session")
def tiny_dataset(model_store: LocalStore) -> Artifact:
    """Questions the tiny model has words for, two about an image and one about none, under the tag `questions`."""
    from PIL import Image

    from vlmpress.data import Record, Turn, write_records
    from vlmpress.dataset.v1 import dataset_pb2

    with model_store.draft() as draft:
        images = draft.path / "images"
        images.mkdir()
        records = []
        for number in range(10):
            name = images / f"{number}.png"
            Image.new("RGB", (40, 30), (25 * number, 90, 200)).save(name)
            turns = (Turn("what color is the shape ?", "red"), Turn("is it a circle ?", "no" if number % 2 else "yes"))
            records += [Record(f"{number}.{index}", (name,), (turn,), "train") for index, turn in enumerate(turns)]
        records.append(Record("text", (), (Turn("is it blue ?", "no"),), "train"))
        write_records(draft.path / "records.jsonl", records, images)
        made = draft.commit(dataset_pb2.Dataset(name="tiny", num_train=len(records)), producer=PRODUCER)
    model_store.tag("questions", made.digest)
    return made


@pytest.fixture(scope="session")
def main_job() -> dict[str, Any]:
    """The configuration of a main job of some seconds; `out` and `runner` are the test's."""
    return {
        "data": {"num_train_images": 32, "num_test_images": 12, "max_eval_questions": 24},
        "tower": {"num_steps": 6},
        "teacher": {"num_steps": 4},
        "student_sft": {"num_steps": 3},
        "distill": {"num_verbalization_steps": 2, "num_interaction_steps": 3, "num_sft_steps": 2},
        "reduction": {"num_steps": 2, "num_calibration_images": 8},
        "edge": {"num_steps": 3},
    }


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayRunner]:
    """One cluster for all tests: Ray's processes do not always start where a process has had one before."""
    with ray_runner(4) as running:
        yield running


@pytest.fixture(scope="module")
def runner(cluster: RayRunner, request: pytest.FixtureRequest) -> RayRunner:
    """Runs the functions of a test module on Ray."""
    import ray

    # Workers cannot import a test.
    ray.cloudpickle.register_pickle_by_value(request.module)
    return cluster


@pytest.fixture(scope="session")
def server(model_store: LocalStore) -> Iterator[Any]:
    """One server of all services for the tests that only ask."""
    running = start_server(model_store.root)
    yield running
    end(running.process)


@pytest.fixture
def own_store(model_store: LocalStore, tmp_path: Path) -> LocalStore:
    """A copy of the store for a test that changes it."""
    shutil.copytree(model_store.root, tmp_path / "store", ignore=shutil.ignore_patterns("jobs"))
    return LocalStore(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny(model_store: LocalStore) -> Artifact:
    return model_store.resolve("tiny")


@pytest.fixture(scope="session")
def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()
