"""A real `vlmpress serve`, asked by real clients."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tokenreduce import ReductionPolicy
from tokenreduce.wire import features_to_proto, policy_to_proto
from verbdistill.wire import match_request_to_proto
from vlmpress.artifact import Artifact
from vlmpress.edgevlm.v1 import edgevlm_service_pb2
from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub
from vlmpress.job.v1 import job_pb2, job_service_pb2
from vlmpress.job.v1.job_service_pb2_grpc import JobServiceStub
from vlmpress.quantpack.v1 import quantpack_pb2, quantpack_service_pb2
from vlmpress.quantpack.v1.quantpack_service_pb2_grpc import QuantpackServiceStub
from vlmpress.stagetrain.v1 import stagetrain_service_pb2
from vlmpress.stagetrain.v1.stagetrain_service_pb2_grpc import StageTrainServiceStub
from vlmpress.tokenreduce.v1 import tokenreduce_service_pb2
from vlmpress.tokenreduce.v1.tokenreduce_service_pb2_grpc import TokenReduceServiceStub
from vlmpress.verbdistill.v1.verbdistill_service_pb2_grpc import VerbDistillServiceStub
from vlmpress_services.clients import ArtifactClient, EdgeVlmClient, EvaluationClient, JobClient
from vlmpress_services.errors import LaunchError, ServiceError
from vlmpress_services.jobs.table import JobTable
from vlmpress_services.scoring import Prediction
from vlmpress_services.serving.launch import served
from vlmpress_services.serving.registry import SERVICES
from vlmpress_services.store.local import LocalStore

MALFORMED = b"\x0a\x64"
STREAMING = ("Generate", "ReadFile", "WatchJob")


def health(address: str, timeout_s: float = 5) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=timeout_s).status


def methods() -> list[str]:
    """Every method of every service, from the protos."""
    import importlib

    found = []
    for name, full in SERVICES.items():
        module = importlib.import_module(f"vlmpress.{name}.v1.{name}_service_pb2")
        service = module.DESCRIPTOR.services_by_name[full.rpartition(".")[2]]
        found += [f"/{full}/{method.name}" for method in service.methods]
    return found


def call_raw(channel: grpc.Channel, method: str, data: bytes) -> None:
    if method.endswith(STREAMING):
        for _ in channel.unary_stream(method)(data, timeout=10):
            pass
    else:
        channel.unary_unary(method)(data, timeout=10)


def test_the_line_health_and_reflection_name_all_services(server: Any) -> None:
    assert server.services == list(SERVICES)
    assert health(server.address) == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        response = next(stub.ServerReflectionInfo(requests, timeout=10))
    assert {item.name for item in response.list_services_response.service} >= set(SERVICES.values())


@pytest.mark.parametrize("method", methods())
def test_malformed_bytes_are_an_invalid_argument(server: Any, method: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call_raw(channel, method, MALFORMED)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "protobuf message" in caught.value.details()


@pytest.mark.parametrize("method", [name for name in methods() if "/List" not in name])
def test_an_empty_request_is_refused(server: Any, method: str) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call_raw(channel, method, b"")
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def test_an_unknown_method_is_unimplemented(server: Any) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for method in ("/vlmpress.edgevlm.v1.EdgeVlmService/Nothing", "/vlmpress.nothing.v1.Service/Get"):
            with pytest.raises(grpc.RpcError) as caught:
                call_raw(channel, method, b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_generate_streams_tokens(server: Any, tiny: Artifact, png: bytes) -> None:
    request = edgevlm_service_pb2.GenerateRequest(
        model=tiny.digest, images=[png], prompt="is it red ?", max_new_tokens=5
    )
    with grpc.insecure_channel(server.address) as channel:
        responses = list(EdgeVlmServiceStub(channel).Generate(request, timeout=60))
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds == ["token"] * (len(kinds) - 1) + ["finish"]
    finish = responses[-1].finish
    assert finish.num_generated_tokens == len(kinds) - 1
    assert finish.num_visual_tokens == 16
    with EdgeVlmClient(server.address) as client:
        assert client.load("tiny").digest == tiny.digest
        assert client.generate("tiny", png, "is it red ?", 5).text == finish.text


def test_a_pack_job_makes_a_pack_that_is_inspected_verified_and_served(server: Any, tiny: Artifact, png: bytes) -> None:
    scheme = quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_CHANNEL)
    spec = job_pb2.JobSpec(pack=job_pb2.PackJob(model="tiny", scheme=scheme))
    with grpc.insecure_channel(server.address) as channel:
        jobs = JobServiceStub(channel)
        job = jobs.CreateJob(job_service_pb2.CreateJobRequest(spec=spec, request_id="pack tiny"), timeout=10).job
        states = [each.job for each in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job.job_id), timeout=120)]
        assert states[-1].state == job_pb2.JOB_STATE_SUCCEEDED, states[-1].message
        digest = states[-1].result
        packs = QuantpackServiceStub(channel)
        inspected = packs.Inspect(quantpack_service_pb2.InspectRequest(artifact=digest), timeout=30)
        scheme.axis = quantpack_pb2.AXIS_OUT  # what a request without an axis means
        assert inspected.scheme == scheme
        assert inspected.parts[-1].part == "total"
        assert packs.Verify(quantpack_service_pb2.VerifyRequest(artifact=digest), timeout=30).ok
    with ArtifactClient(server.address) as artifacts:
        assert artifacts.verify(digest) == ""
        assert artifacts.manifest(digest)[1].parents[0].digest == tiny.digest
        assert digest in [row.digest for row in artifacts.list("quantized_model")]
    with EdgeVlmClient(server.address) as client:
        answer = client.generate(digest, png, "is it red ?", 3)
        assert answer.num_visual_tokens == 16


def test_the_other_packages_answer(server: Any) -> None:
    features = torch.rand(2, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    with grpc.insecure_channel(server.address) as channel:
        plan = TokenReduceServiceStub(channel).Plan(
            tokenreduce_service_pb2.PlanRequest(
                features=features_to_proto(features), policy=policy_to_proto(ReductionPolicy(tau=10.0))
            ),
            timeout=30,
        )
        assert [image.num_tokens for image in plan.images] == [4, 4]
        schedule = StageTrainServiceStub(channel).PlanSchedule(
            stagetrain_service_pb2.PlanScheduleRequest(scheme="two_stage", num_layers=32, num_visual_tokens=576),
            timeout=30,
        )
        assert [cost.visual_tokens for cost in schedule.costs] == [3312, 18432]
        drawn = VerbDistillServiceStub(channel).MatchLayers(match_request_to_proto(torch.rand(2, 5)), timeout=30)
        assert list(drawn.teacher_targets) == sorted(set(drawn.teacher_targets))
    with EvaluationClient(server.address) as client:
        rows = [Prediction(index=index, question_type="other", expected="a", answer="ab"[index]) for index in (0, 1)]
        assert client.score(rows).overall.accuracy == 0.5


def test_an_overloaded_server_refuses_calls_and_answers_health(
    launch: Any, model_store: LocalStore, png: bytes
) -> None:
    server = launch(model_store.root, "--services", "edgevlm", "--max-concurrent", "1")

    def ask(_: int) -> str:
        with EdgeVlmClient(server.address) as client:
            try:
                client.generate("tiny", png, "is it red ?", 20)
            except ServiceError as error:
                return error.code
            return "OK"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask, number) for number in range(24)]
        while not all(call.done() for call in calls):
            assert health(server.address) == health_pb2.HealthCheckResponse.SERVING
        codes = {call.result() for call in calls}
    assert codes == {"OK", "RESOURCE_EXHAUSTED"}
    assert ask(0) == "OK"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(launch: Any, tmp_path: Path, number: signal.Signals) -> None:
    server = launch(tmp_path / "store", "--services", "artifact,job")
    assert server.services == ["artifact", "job"]
    start_s = time.monotonic()
    server.process.send_signal(number)
    assert server.process.wait(10) == 0
    assert time.monotonic() - start_s < 10
    assert server.process.stdout.read() == b"", "standard output is for one line only"


def test_the_end_of_standard_input_ends_the_server(launch: Any, tmp_path: Path) -> None:
    server = launch(tmp_path / "store", "--services", "evaluation", "--exit-with-stdin")
    server.process.stdin.close()
    assert server.process.wait(10) == 0


def test_a_killed_server_leaves_a_sound_store_and_its_job_to_the_next(launch: Any, own_store: LocalStore) -> None:
    server = launch(own_store.root, "--services", "artifact,job")
    spec = job_pb2.JobSpec(
        pack=job_pb2.PackJob(
            model="tiny", scheme=quantpack_pb2.Scheme(bits=4, granularity=quantpack_pb2.GRANULARITY_TENSOR)
        )
    )
    with grpc.insecure_channel(server.address) as channel:
        jobs = JobServiceStub(channel)
        request = job_service_pb2.CreateJobRequest(spec=spec, request_id="r")
        job_id = jobs.CreateJob(request, timeout=10).job.job_id
        for response in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job_id), timeout=60):
            if response.job.state != job_pb2.JOB_STATE_PENDING:
                break
        server.process.kill()
        server.process.wait()
    for digest in own_store.digests():
        own_store.verify(digest)
    time.sleep(1)  # the worker sees the end of its standard input
    again = launch(own_store.root, "--services", "artifact,job")
    with JobClient(again.address) as client:
        *_, job = client.watch(job_id)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.message
        assert client.create(spec, "r") == job
    own_store.verify(job.result)


def test_a_stopping_server_leaves_its_running_job_to_the_next(
    launch: Any, own_store: LocalStore, tiny_dataset: Artifact
) -> None:
    settings = "training: {max_steps: 300, per_device_train_batch_size: 2, save_steps: 10}"
    train = job_pb2.TrainJob(model="tiny", dataset="questions", scheme="plain", settings_yaml=settings)
    server = launch(own_store.root, "--services", "job")
    with JobClient(server.address) as client:
        job_id = client.create(job_pb2.JobSpec(train=train), "r").job_id
        reached = next(job.train_progress.step for job in client.watch(job_id) if job.train_progress.step >= 20)
        worker = psutil.Process(int((own_store.root / "jobs" / f"{job_id}.lock").read_text()))
        start_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        # The grace, and a second.
        assert time.monotonic() - start_s < 5 + 1
    assert not worker.is_running()
    left = JobTable(own_store.root).get(job_id)
    assert (left.state, left.attempt) == (job_pb2.JOB_STATE_PENDING, 1)
    assert left.message == "the server stopped; the job goes on with the next one"
    with JobClient(launch(own_store.root, "--services", "job").address) as client:
        seen = list(client.watch(job_id))
    assert (seen[-1].state, seen[-1].attempt) == (job_pb2.JOB_STATE_SUCCEEDED, 2), seen[-1].message
    # From its last checkpoint on, not from the start.
    assert min(job.train_progress.step for job in seen) >= reached - 10
    own_store.verify(seen[-1].result)


def test_served_gives_an_address_and_takes_the_server_down(tmp_path: Path) -> None:
    with served(tmp_path / "store", "evaluation") as address:
        assert health(address) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError):
        health(address, timeout_s=2)
    with pytest.raises(LaunchError, match="exit code 2"), served(tmp_path / "store", "nothing"):
        pass


def test_a_server_does_not_outlive_the_process_that_launched_it(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from vlmpress_services.serving.launch import served\n"
        "with served(Path(sys.argv[1]), 'evaluation') as address:\n"
        "    print(address, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert health(address) == health_pb2.HealthCheckResponse.SERVING
        os.kill(parent.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 15
    while time.monotonic() < deadline_s:
        try:
            health(address, timeout_s=1)
        except grpc.RpcError:
            return
        time.sleep(0.2)
    pytest.fail("the server still answers")
