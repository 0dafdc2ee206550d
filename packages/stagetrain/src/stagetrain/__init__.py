"""Training with visual tokens pooled inside the LLM, stage by stage (LLaVolta)."""

from stagetrain.attaching.attachment import Attachment, attach
from stagetrain.attaching.saved_setting import load_compression, save_compression
from stagetrain.errors import StageTrainError
from stagetrain.loop.feature_cache import cache_vision_features
from stagetrain.loop.learning_rates import LearningRateCurve
from stagetrain.loop.trainer import StageTrainer
from stagetrain.loop.training import TrainResult, train
from stagetrain.samples.batches import Batches
from stagetrain.samples.conversations import ConversationCollator
from stagetrain.samples.groups import ImageGroups, Sample, SingleRecords, draw_questions
from stagetrain.schedules.costs import (
    AverageCost,
    DecoderShape,
    StageCost,
    average_cost,
    compression_ratio_percent,
    plan_schedule,
    schedule_costs,
    visual_token_count,
)
from stagetrain.schedules.schedule import Schedule, Stage
from stagetrain.schedules.schemes import (
    SCHEMES,
    TABLE_1,
    always_compressed,
    auroraedge_schedule,
    edge_schedule,
    named_schedule,
)
from stagetrain.schedules.setting import CompressionSetting

__all__ = [
    "SCHEMES",
    "TABLE_1",
    "Attachment",
    "AverageCost",
    "Batches",
    "CompressionSetting",
    "ConversationCollator",
    "DecoderShape",
    "ImageGroups",
    "LearningRateCurve",
    "Sample",
    "Schedule",
    "SingleRecords",
    "Stage",
    "StageCost",
    "StageTrainError",
    "StageTrainer",
    "TrainResult",
    "always_compressed",
    "attach",
    "auroraedge_schedule",
    "average_cost",
    "cache_vision_features",
    "compression_ratio_percent",
    "draw_questions",
    "edge_schedule",
    "load_compression",
    "named_schedule",
    "plan_schedule",
    "save_compression",
    "schedule_costs",
    "train",
    "visual_token_count",
]
