"""Stages, schedules and costs as messages of vlmpress.stagetrain.v1."""

from stagetrain.compressors.average import AveragePool
from stagetrain.errors import ScheduleError
from stagetrain.schedules.costs import AverageCost, StageCost
from stagetrain.schedules.schedule import Schedule, Stage
from stagetrain.schedules.setting import CompressionSetting
from vlmpress.stagetrain.v1 import stagetrain_pb2 as pb


def stage_to_proto(stage: Stage) -> pb.Stage:
    """Message of a stage."""
    setting = stage.compression
    return pb.Stage(
        fraction=stage.fraction,
        layer=None if setting is None else setting.layer,
        stride=None if setting is None else setting.stride,
        compressor="" if setting is None else setting.compressor,
        trainable=stage.trainable,
        learning_rate_scale=stage.learning_rate_scale,
        batch_size_scale=stage.batch_size_scale,
    )


def stage_from_proto(message: pb.Stage) -> Stage:
    """Stage of a message.

    Raises:
        ScheduleError: The stage is not possible.
    """
    if message.HasField("layer") != message.HasField("stride"):
        raise ScheduleError("stage: expected layer and stride together, got one of them")
    if message.compressor and not message.HasField("layer"):
        raise ScheduleError(
            f"stage: expected layer and stride beside a compressor, got {message.compressor[:80]!r} alone"
        )
    setting = None
    if message.HasField("layer"):
        setting = CompressionSetting(
            layer=message.layer, stride=message.stride, compressor=message.compressor or AveragePool.name
        )
    return Stage(
        fraction=message.fraction,
        compression=setting,
        trainable=tuple(message.trainable),
        learning_rate_scale=message.learning_rate_scale or 1.0,
        batch_size_scale=message.batch_size_scale or 1.0,
    )


def schedule_to_proto(schedule: Schedule) -> pb.StageSchedule:
    """Message of a schedule."""
    stages = [stage_to_proto(stage) for stage in schedule.stages]
    return pb.StageSchedule(name=schedule.name, stages=stages, restarts=schedule.restarts)


def schedule_from_proto(message: pb.StageSchedule) -> Schedule:
    """Schedule of a message.

    Raises:
        ScheduleError: A stage is not possible, or the fractions do not sum to 1.
    """
    return Schedule(message.name, tuple(stage_from_proto(stage) for stage in message.stages), message.restarts)


def cost_to_proto(cost: StageCost) -> pb.StageCost:
    """Message of a cost."""
    return pb.StageCost(
        stage=stage_to_proto(cost.stage),
        visual_tokens=cost.visual_tokens,
        cr_percent=cost.cr_percent,
        prefill_tflops=cost.prefill_tflops,
    )


def cost_from_proto(message: pb.StageCost) -> StageCost:
    """Cost of a message.

    Raises:
        ScheduleError: Its stage is not possible.
    """
    tflops = message.prefill_tflops if message.HasField("prefill_tflops") else None
    return StageCost(stage_from_proto(message.stage), message.visual_tokens, message.cr_percent, tflops)


def average_to_proto(average: AverageCost) -> pb.AverageCost:
    """Message of a run's average cost."""
    return pb.AverageCost(
        visual_tokens=average.visual_tokens, cr_percent=average.cr_percent, prefill_tflops=average.prefill_tflops
    )


def average_from_proto(message: pb.AverageCost) -> AverageCost:
    """A run's average cost out of a message."""
    tflops = message.prefill_tflops if message.HasField("prefill_tflops") else None
    return AverageCost(message.visual_tokens, message.cr_percent, tflops)
