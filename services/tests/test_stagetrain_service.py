"""PlanSchedule answers what the library's own functions answer, and says what is wrong with a request."""

from typing import Any

import grpc
import pytest

from stagetrain import (
    CompressionSetting,
    DecoderShape,
    Schedule,
    Stage,
    average_cost,
    named_schedule,
    schedule_costs,
)
from stagetrain.wire import schedule_from_proto, schedule_to_proto
from vlmpress.stagetrain.v1 import stagetrain_pb2
from vlmpress.stagetrain.v1 import stagetrain_service_pb2 as pb
from vlmpress.stagetrain.v1.stagetrain_service_pb2_grpc import StageTrainServiceStub

QWEN = DecoderShape(
    hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2, head_dim=128
)
SHAPE = stagetrain_pb2.DecoderShape(
    hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2
)
CUSTOM = Schedule(
    "custom",
    (
        Stage(fraction=0.25, compression=CompressionSetting(layer=1, stride=4, compressor="average_2d")),
        Stage(fraction=0.75, trainable=("connectors",), learning_rate_scale=0.5),
    ),
)


def message(**changes: Any) -> stagetrain_pb2.StageSchedule:
    """The custom schedule with some fields of its first stage changed."""
    schedule = schedule_to_proto(CUSTOM)
    for name, value in changes.items():
        setattr(schedule.stages[0], name, value)
    return schedule


async def test_table_4_and_the_run_s_average(serving: Any) -> None:
    request = pb.PlanScheduleRequest(scheme="three_stage_deeper", num_layers=32, num_visual_tokens=576)
    async with serving("stagetrain") as channel:
        response = await StageTrainServiceStub(channel).PlanSchedule(request)
    assert [round(cost.prefill_tflops, 2) for cost in response.costs] == [2.14, 5.0, 8.26]
    assert response.average.visual_tokens == pytest.approx((3312 + 10368 + 18432) / 3)
    assert response.average.cr_percent == pytest.approx(100 * 18432 / response.average.visual_tokens)
    # Table 5 prints 3.93, which does not follow from its own parts.
    assert response.average.prefill_tflops == pytest.approx(5.13, abs=0.005)


async def test_a_schedule_of_one_s_own_and_a_decoder_s_own_shape(serving: Any) -> None:
    async with serving("stagetrain") as channel:
        stub = StageTrainServiceStub(channel)
        plain = await stub.PlanSchedule(pb.PlanScheduleRequest(schedule=message(), num_layers=28, num_visual_tokens=64))
        request = pb.PlanScheduleRequest(
            schedule=message(), num_layers=28, num_visual_tokens=64, shape=SHAPE, num_text_tokens=0
        )
        shaped = await stub.PlanSchedule(request)
    assert schedule_from_proto(shaped.schedule) == CUSTOM
    costs = schedule_costs(CUSTOM, 28, 64, QWEN, 0)
    assert [cost.visual_tokens for cost in shaped.costs] == [64 + 27 * 16, 28 * 64]
    assert [cost.prefill_tflops for cost in shaped.costs] == [cost.prefill_tflops for cost in costs]
    average = average_cost(costs)
    assert shaped.average.prefill_tflops == average.prefill_tflops
    assert shaped.average.visual_tokens == plain.average.visual_tokens == average.visual_tokens
    assert not plain.costs[0].HasField("prefill_tflops")
    assert not plain.average.HasField("prefill_tflops")


async def test_every_scheme_of_the_library_is_planned(serving: Any) -> None:
    from stagetrain import SCHEMES

    async with serving("stagetrain") as channel:
        for name in SCHEMES:
            request = pb.PlanScheduleRequest(scheme=name, num_layers=8, num_visual_tokens=64)
            response = await StageTrainServiceStub(channel).PlanSchedule(request)
            assert schedule_from_proto(response.schedule) == named_schedule(name, 8)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"scheme": "none"}, grpc.StatusCode.NOT_FOUND, "scheme: expected one of"),
        ({"scheme": None}, grpc.StatusCode.INVALID_ARGUMENT, "stages: expected scheme or schedule, got none"),
        ({"num_layers": 1}, grpc.StatusCode.INVALID_ARGUMENT, "num_layers: expected at least 2, got 1"),
        ({"num_layers": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "num_layers: expected at most"),
        ({"num_visual_tokens": 0}, grpc.StatusCode.INVALID_ARGUMENT, "num_visual_tokens: expected at least 1"),
        (
            {"schedule": stagetrain_pb2.StageSchedule()},
            grpc.StatusCode.INVALID_ARGUMENT,
            "schedule: stages: expected 1 to 64, got 0",
        ),
        ({"schedule": message(fraction=0.5)}, grpc.StatusCode.INVALID_ARGUMENT, "fractions that sum to 1"),
        ({"schedule": message(fraction=float("nan"))}, grpc.StatusCode.INVALID_ARGUMENT, "fraction: expected"),
        ({"schedule": message(stride=0)}, grpc.StatusCode.INVALID_ARGUMENT, "stride of at least 1"),
        ({"schedule": message(compressor="zip")}, grpc.StatusCode.INVALID_ARGUMENT, "zip"),
        ({"schedule": message(layer=8)}, grpc.StatusCode.INVALID_ARGUMENT, "layer below 8"),
        (
            {"shape": stagetrain_pb2.DecoderShape(hidden_size=64)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "shape: intermediate_size",
        ),
        (
            {
                "shape": stagetrain_pb2.DecoderShape(
                    hidden_size=64, intermediate_size=8, num_attention_heads=4, num_key_value_heads=3
                )
            },
            grpc.StatusCode.INVALID_ARGUMENT,
            "shape: num_key_value_heads",
        ),
        (
            {"shape": stagetrain_pb2.DecoderShape(hidden_size=65, intermediate_size=8, num_attention_heads=4)},
            grpc.StatusCode.INVALID_ARGUMENT,
            "shape: head_dim",
        ),
    ],
)
async def test_what_cannot_be_planned_is_refused(
    serving: Any, refusal: Any, change: dict[str, Any], code: Any, text: str
) -> None:
    fields = {"scheme": "two_stage", "num_layers": 8, "num_visual_tokens": 16, **change}
    if "schedule" in change:
        del fields["scheme"]
    async with serving("stagetrain") as channel:
        got_code, got_text = await refusal(
            StageTrainServiceStub(channel).PlanSchedule(pb.PlanScheduleRequest(**fields))
        )
    assert got_code is code
    assert text in got_text
