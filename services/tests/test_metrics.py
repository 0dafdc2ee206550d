"""What Prometheus finds."""

import re
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as pb
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress.job.v1 import job_pb2
from vlmpress_services.errors import InvalidRequestError, ListenError
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.serving.images import ImagesConfig, check_images
from vlmpress_services.serving.metrics import Metrics, exported
from vlmpress_services.serving.server import Server, ServerConfig

SCORE = "/vlmpress.evaluation.v1.EvaluationService/ScorePredictions"


def scraped(address: str) -> dict[tuple[str, str], float]:
    """Values by name and the label values, joined by commas in the order of the labels' names."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, ",".join(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def refuse(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call


async def test_calls_are_counted_by_method_and_code(store: Any) -> None:
    config = ServerConfig(listen="127.0.0.1:0", store=store.root, services=("evaluation",), metrics="127.0.0.1:0")
    server = Server(config)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            for data in (b"", b"\x0a\x64", b"\0" * (17 << 20)):
                await refuse(channel.unary_unary(SCORE)(data))
            for path in ("/a/b", "/c/d"):
                await refuse(channel.unary_unary(path)(b""))
        values = scraped(server.metrics_address)
    finally:
        await server.stop(0)
    score = "evaluation.ScorePredictions"
    assert values["vlmpress_calls_total", f"INVALID_ARGUMENT,{score}"] == 2
    assert values["vlmpress_calls_total", f"RESOURCE_EXHAUSTED,{score}"] == 1
    assert values["vlmpress_calls_total", "UNIMPLEMENTED,unknown"] == 2
    assert values["vlmpress_calls_refused_total", score] == 1
    assert values["vlmpress_call_seconds_count", score] == 3
    assert values["vlmpress_calls_in_flight", score] == 0
    assert values["vlmpress_received_bytes_total", score] == 2 + (17 << 20)


async def test_answers_models_and_tokens_are_counted(store: Any, add_model: Any, png: bytes) -> None:
    store.tag("it", add_model().digest)
    config = ServerConfig(listen="127.0.0.1:0", store=store.root, services=("edgevlm",), metrics="127.0.0.1:0")
    server = Server(config)
    await server.start()
    try:
        assert scraped(server.metrics_address)["vlmpress_models_loaded", "edgevlm"] == 0
        async with grpc.aio.insecure_channel(server.address) as channel:
            request = pb.GenerateRequest(model="it", images=[png], prompt="is it red ?", max_new_tokens=3)
            answer = [event async for event in EdgeVlmServiceStub(channel).Generate(request)]
        values = scraped(server.metrics_address)
    finally:
        await server.stop(0)
    assert values["vlmpress_generated_tokens_total", ""] == len(answer) - 1
    assert values["vlmpress_time_to_first_token_seconds_count", ""] == 1
    assert values["vlmpress_models_loaded", "edgevlm"] == 1
    assert values["vlmpress_sent_bytes_total", "edgevlm.Generate"] > 0


def test_jobs_are_counted_by_state(tmp_path: Path) -> None:
    table = JobTable(tmp_path)
    spec = job_pb2.JobSpec(pack=job_pb2.PackJob(model="x"))
    for request_id in ("a", "b", "c"):
        job = table.create(request_id, spec)
    table.cancel(job.job_id)
    assert table.num_by_state() == {"PENDING": 2, "CANCELLED": 1}
    metrics = Metrics()
    metrics.read("jobs", "Jobs by state.", "state", table.num_by_state)
    with exported(metrics, "127.0.0.1:0") as address:
        values = scraped(address)
    assert (values["vlmpress_jobs", "PENDING"], values["vlmpress_jobs", "CANCELLED"]) == (2, 1)


def test_a_taken_address_is_a_listen_error() -> None:
    metrics = Metrics()
    with exported(metrics, "127.0.0.1:0") as address:
        with pytest.raises(ListenError, match=re.escape(address)), exported(metrics, address):
            pass
        assert scraped(address) is not None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_images": 1}, "images: expected at most 1, got 2"),
        ({"max_image_bytes": 60}, "images: expected at most 60 bytes each, got"),
        ({"max_pixels": 2399}, "images: expected at most 2399 pixels together, got 2400"),
    ],
)
async def test_images_have_limits_by_configuration(
    store: Any, add_model: Any, png: bytes, serving: Any, refusal: Any, limits: Any, expected: str
) -> None:
    store.tag("it", add_model().digest)
    request = pb.GenerateRequest(model="it", images=[png, png], prompt="is it red ?", max_new_tokens=1)
    async with serving("edgevlm", images=ImagesConfig(**limits)) as channel:
        code, text = await refusal(EdgeVlmServiceStub(channel).Generate(request).read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(expected)


def test_what_is_no_image_is_left_for_the_decoder(png: bytes, tmp_path: Path) -> None:
    limits = ImagesConfig(max_images=3, max_image_bytes=len(png), max_pixels=1200)
    check_images([b"", b"no image", png], limits)
    with pytest.raises(InvalidRequestError, match="got 2400"):
        check_images([png, png[:-20]], limits)
