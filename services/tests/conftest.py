import asyncio
import io
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import pytest

from vlmpress.artifact import Artifact
from vlmpress.artifact.v1 import artifact_pb2
from vlmpress.evaluation.v1 import evaluation_service_pb2
from vlmpress_services.evaluation_service import EvaluationService
from vlmpress_services.serving.server import Server, ServerConfig
from vlmpress_services.store.local import LocalStore

# For the workers that tests start, as tox sets it: at this size a second thread only takes time from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PRODUCER = ("vlmpress-services", "0.1.0")

Serving = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def add_log(store: LocalStore) -> Callable[..., Artifact]:
    """Commits a log artifact with one file of the given text."""

    def add(text: str = "hello", name: str = "log.txt") -> Artifact:
        with store.draft() as draft:
            (draft.path / name).write_text(text)
            return draft.commit(artifact_pb2.Log(source="test"), producer=PRODUCER)

    return add


@pytest.fixture
def serving(store: LocalStore) -> Serving:
    """A channel to a server of the named services in this event loop."""

    @asynccontextmanager
    async def serve(*services: str, **options: Any) -> Any:
        server = Server(ServerConfig(listen="127.0.0.1:0", store=store.root, services=services, **options))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield channel
        finally:
            await server.stop(0.2)

    return serve


@pytest.fixture
def held_scores(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Makes ScorePredictions wait until the event is set."""
    release = asyncio.Event()

    async def wait(*_: Any) -> Any:
        await release.wait()
        return evaluation_service_pb2.ScorePredictionsResponse()

    monkeypatch.setattr(EvaluationService, "ScorePredictions", wait)
    return release


@pytest.fixture
def refusal() -> Callable[[Awaitable[Any]], Awaitable[tuple[grpc.StatusCode, str]]]:
    """Status code and text of a call that must fail."""

    async def ask(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code(), caught.value.details() or ""

    return ask


@pytest.fixture(scope="session")
def tiny_llava_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llava model of random weights with its processor, as `save_pretrained` leaves it."""
    import torch

    from vlmpress.data import Record, Turn
    from vlmpress_services.pipeline.tiny_models import TinyShape, build_llava, build_processor, build_tower

    torch.set_num_threads(1)
    shape = TinyShape(image_px=32, hidden_size=32, language_intermediate_size=48, max_positions=256)
    turns = (Turn("what color is the shape ?", "red"), Turn("is it a circle ?", "yes"), Turn("is it blue ?", "no"))
    processor = build_processor([Record("1", (), turns)], shape)
    model = build_llava(build_tower(shape, seed=0), processor, shape, num_layers=2, seed=0)
    directory = tmp_path_factory.mktemp("tiny") / "llava"
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture
def add_model(store: LocalStore, tiny_llava_directory: Path) -> Callable[..., Artifact]:
    """Commits the tiny Llava; `note` makes copies with digests of their own."""
    import shutil

    def add(note: str = "") -> Artifact:
        with store.draft() as draft:
            shutil.copytree(tiny_llava_directory, draft.path, dirs_exist_ok=True)
            (draft.path / "note.txt").write_text(note)
            return draft.commit(artifact_pb2.Model(model_type="llava"), producer=PRODUCER)

    return add


@pytest.fixture
def add_dataset(store: LocalStore) -> Callable[..., Artifact]:
    """Commits questions the tiny models have words for, each about an image of its own, as the main job does."""
    from PIL import Image

    from vlmpress.data import Record, Turn, write_records
    from vlmpress.dataset.v1 import dataset_pb2

    def add(num_train: int = 6, num_test: int = 3, num_evaluated: int = 0) -> Artifact:
        with store.draft() as draft:
            images = draft.path / "images"
            images.mkdir()
            records = []
            for number in range(num_train + num_test):
                name = images / f"{number}.png"
                Image.new("RGB", (40, 30), (40 * number % 256, 90, 200)).save(name)
                turn = Turn("what color is the shape ?", "red") if number % 2 else Turn("is it a circle ?", "yes")
                records.append(Record(str(number), (name,), (turn,), "train" if number < num_train else "test"))
            write_records(draft.path / "records.jsonl", records, images)
            if num_evaluated:
                write_records(draft.path / "evaluation.jsonl", records[num_train:][:num_evaluated], images)
            spec = dataset_pb2.Dataset(name="tiny", num_train=num_train, num_test=num_test)
            return draft.commit(spec, producer=PRODUCER)

    return add


@pytest.fixture(scope="session")
def png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def edge_model() -> Callable[..., Any]:
    """Builds a random edge model without a compressor, 36 visual tokens an image, by fusion, tower and position mode.

    Its gates are open; the tower knows no positions, so that a plain image stays plain.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, Siglip2VisionConfig, SiglipVisionConfig

    from edgevlm import EdgeVlmConfig, EdgeVlmForConditionalGeneration

    shared: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    shared |= {"patch_size": 8, "initializer_range": 0.2}
    text: Any = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.2,
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    towers = {
        "clip": lambda: CLIPVisionConfig(**shared, image_size=48),
        "siglip": lambda: SiglipVisionConfig(**shared, image_size=48),
        "siglip2": lambda: Siglip2VisionConfig(**shared, num_patches=36, vision_use_head=False),
    }

    def build(fusion: str, tower: str = "clip", mode: str = "contiguous", **changes: Any) -> Any:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        settings: Any = {"num_compressed_tokens": 36, "compressor": "none", "image_token_id": 60}
        settings |= {"fusion": fusion, "position_mode": mode}
        config = EdgeVlmConfig(vision_config=towers[tower](), text_config=LlamaConfig(**text), **(settings | changes))
        model = EdgeVlmForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("gate"):
                    parameter.fill_(0.7)
                if "position_embedding" in name:
                    parameter.zero_()
        return model

    return build


@pytest.fixture(scope="session")
def bucket_server() -> Any:
    """moto's S3; with `ignores` set it sees no conditions of writes."""
    pytest.importorskip("moto.server")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(DomainDispatcherApplication):
        ignores = False

        def __call__(self, environ: Any, start_response: Any) -> Any:
            if self.ignores and environ["REQUEST_METHOD"] == "PUT":
                for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
                    environ.pop(name, None)
            return super().__call__(environ, start_response)

    app = Quiet(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.app_under_test = app  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def open_bucket(bucket_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens the store of a fresh bucket, each time as another machine would."""
    from vlmpress_services.store.opening import open_store

    endpoint = f"http://127.0.0.1:{bucket_server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{time.time_ns()}"
    urlopen(Request(f"{endpoint}/{bucket}", method="PUT")).close()
    machines = iter(range(100))

    def open_one(**options: Any) -> Any:
        return open_store(f"s3://{bucket}/some/prefix", root=tmp_path / f"machine{next(machines)}", **options)

    open_one.url = f"s3://{bucket}/some/prefix"  # type: ignore[attr-defined]
    yield open_one
    bucket_server.app_under_test.ignores = False
