"""Each package's RPC answers what the package's own function answers."""

from typing import Any

import grpc
import pytest
import torch

from quantpack import Scheme, inspect, pack
from quantpack.wire import part_report_from_proto
from stagetrain import plan_schedule
from verbdistill import match_layers
from verbdistill.wire import match_request_to_proto
from vlmpress.artifact import Artifact
from vlmpress.quantpack.v1 import quantpack_service_pb2
from vlmpress.quantpack.v1.quantpack_service_pb2_grpc import QuantpackServiceStub
from vlmpress.stagetrain.v1 import stagetrain_service_pb2
from vlmpress.stagetrain.v1.stagetrain_service_pb2_grpc import StageTrainServiceStub
from vlmpress.verbdistill.v1 import verbdistill_service_pb2
from vlmpress.verbdistill.v1.verbdistill_service_pb2_grpc import VerbDistillServiceStub


@pytest.fixture
def packed(store: Any, add_model: Any, tmp_path: Any) -> Artifact:
    pack(add_model().path, tmp_path / "pack", Scheme(group_size=16))
    return store.add(tmp_path / "pack")


async def test_quantpack_inspects_and_verifies(serving: Any, store: Any, packed: Artifact) -> None:
    expected = inspect(packed.path)
    async with serving("quantpack") as channel:
        stub = QuantpackServiceStub(channel)
        response = await stub.Inspect(quantpack_service_pb2.InspectRequest(artifact=packed.digest))
        assert response.scheme.group_size == 16
        assert [part.part for part in response.parts] == ["vision", "language", "other", "total"]
        assert [part_report_from_proto(part) for part in response.parts] == expected
        total = response.parts[-1]
        assert 3 < total.entropy_bits_per_code < 4
        # No coder that takes codes one by one is shorter than their entropy.
        assert total.code_bytes_compressed * 8 >= total.entropy_bits_per_code * total.num_weights
        request = quantpack_service_pb2.VerifyRequest(artifact=packed.digest)
        assert (await stub.Verify(request)).ok
        weights = packed.path / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        response = await stub.Verify(request)
        assert not response.ok
        assert "model.safetensors" in response.fault
        assert str(store.root) not in response.fault


async def test_quantpack_refuses_what_is_no_pack(serving: Any, add_log: Any, refusal: Any) -> None:
    async with serving("quantpack") as channel:
        stub = QuantpackServiceStub(channel)
        for ref, code in (
            ("", grpc.StatusCode.INVALID_ARGUMENT),
            ("none", grpc.StatusCode.NOT_FOUND),
            (add_log().digest, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            assert (await refusal(stub.Inspect(quantpack_service_pb2.InspectRequest(artifact=ref))))[0] is code
            assert (await refusal(stub.Verify(quantpack_service_pb2.VerifyRequest(artifact=ref))))[0] is code


async def test_stagetrain_plans(serving: Any, refusal: Any) -> None:
    async with serving("stagetrain") as channel:
        stub = StageTrainServiceStub(channel)
        request = stagetrain_service_pb2.PlanScheduleRequest(
            scheme="three_stage_deeper", num_layers=32, num_visual_tokens=576
        )
        response = await stub.PlanSchedule(request)
        _, costs = plan_schedule("three_stage_deeper", 32, 576)
        assert [cost.visual_tokens for cost in response.costs] == [cost.visual_tokens for cost in costs]
        assert [cost.visual_tokens for cost in response.costs] == [3312, 10368, 18432]
        assert response.schedule.name == "three_stage_deeper"
        for change, code in (
            ({"scheme": "none"}, grpc.StatusCode.NOT_FOUND),
            ({"scheme": ""}, grpc.StatusCode.NOT_FOUND),
            ({"num_layers": 1}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"num_visual_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ):
            fields = {"scheme": "two_stage", "num_layers": 4, "num_visual_tokens": 16, **change}
            assert (await refusal(stub.PlanSchedule(stagetrain_service_pb2.PlanScheduleRequest(**fields))))[0] is code


async def test_verbdistill_draws_what_the_library_draws(serving: Any, refusal: Any) -> None:
    kld = torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    async with serving("verbdistill") as channel:
        stub = VerbDistillServiceStub(channel)
        for seed in (0, 5, 2**64 - 1):
            response = await stub.MatchLayers(match_request_to_proto(kld, seed=seed))
            expected = match_layers(kld.double(), generator=torch.Generator().manual_seed(seed))
            assert list(response.teacher_targets) == expected
        message = verbdistill_service_pb2.MatchLayersRequest
        for bad in (
            message(),
            message(num_student_targets=2, num_teacher_targets=1, kld=[1, 2]),
            message(num_student_targets=2, num_teacher_targets=2, kld=[1]),
            message(num_student_targets=1, num_teacher_targets=2, kld=[1, float("nan")]),
            message(num_student_targets=1, num_teacher_targets=2, kld=[1, 2], scale=-1),
        ):
            assert (await refusal(stub.MatchLayers(bad)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_pack_is_served_as_it_is(serving: Any, packed: Artifact, png: bytes) -> None:
    from edgevlm.serving.engine import Engine
    from vlmpress.edgevlm.v1 import edgevlm_service_pb2
    from vlmpress.edgevlm.v1.edgevlm_service_pb2_grpc import EdgeVlmServiceStub

    expected = list(Engine.load(packed.path).generate(png, "is it red ?", 4))[-1]
    request = edgevlm_service_pb2.GenerateRequest(
        model=packed.digest, images=[png], prompt="is it red ?", max_new_tokens=4
    )
    async with serving("edgevlm") as channel:
        responses = [response async for response in EdgeVlmServiceStub(channel).Generate(request)]
    assert responses[-1].finish.text == expected.text
