import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrain import (
    TABLE_1,
    CompressionSetting,
    Schedule,
    Stage,
    average_cost,
    edge_schedule,
    named_schedule,
    plan_schedule,
    wire,
)
from stagetrain.compressors import COMPRESSORS
from stagetrain.errors import ScheduleError
from vlmpress.stagetrain.v1 import stagetrain_pb2 as pb

SETTINGS = st.builds(
    CompressionSetting,
    layer=st.integers(0, 1000),
    stride=st.integers(1, 1000),
    compressor=st.sampled_from(COMPRESSORS),
)


SCALES = st.floats(1e-6, 1e6)


@given(st.none() | SETTINGS, st.floats(0.01, 1), st.lists(st.text()), SCALES, SCALES)
def test_stages_make_the_round_trip(
    setting: CompressionSetting | None, fraction: float, trainable: list[str], rate: float, batch: float
) -> None:
    stage = Stage(
        fraction=fraction,
        compression=setting,
        trainable=tuple(trainable),
        learning_rate_scale=rate,
        batch_size_scale=batch,
    )
    message = pb.Stage.FromString(wire.stage_to_proto(stage).SerializeToString())
    assert wire.stage_from_proto(message) == stage


@pytest.mark.parametrize(
    "schedule", [edge_schedule(["a.", "b."]), *(named_schedule(name, 32) for name in (*TABLE_1, "auroraedge"))]
)
def test_schedules_make_the_round_trip(schedule: Schedule) -> None:
    assert wire.schedule_from_proto(wire.schedule_to_proto(schedule)) == schedule


def test_costs_make_the_round_trip() -> None:
    for num_layers, num_tokens in ((24, 64), (32, 576)):
        costs = plan_schedule("four_stage_wider_then_deeper", num_layers, num_tokens)[1]
        for cost in costs:
            assert wire.cost_from_proto(wire.cost_to_proto(cost)) == cost
        average = average_cost(costs)
        assert wire.average_from_proto(wire.average_to_proto(average)) == average


def test_an_unset_scale_is_one() -> None:
    stage = wire.stage_from_proto(pb.Stage(fraction=1))
    assert (stage.learning_rate_scale, stage.batch_size_scale) == (1, 1)


@pytest.mark.parametrize(
    "message",
    [
        pb.Stage(),
        pb.Stage(fraction=1, layer=3),
        pb.Stage(fraction=1, layer=0, stride=0),
        pb.Stage(fraction=1, compressor="average"),
    ],
)
def test_impossible_messages_are_refused(message: pb.Stage) -> None:
    with pytest.raises(ScheduleError):
        wire.stage_from_proto(message)
