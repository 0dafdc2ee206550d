"""Training with visual tokens pooled inside the LLM, stage by stage (LLaVolta)."""

from stagetrain.attachment import Attachment, attach
from stagetrain.config import TrainConfig, learning_rate_factor
from stagetrain.conversations import ConversationCollator
from stagetrain.costs import StageCost, compression_ratio_percent, plan_schedule, visual_token_count
from stagetrain.errors import StageTrainError
from stagetrain.groups import ImageGroups, Sample, StepBatches, draw_questions
from stagetrain.schedule import TABLE_1, Schedule, Stage, edge_schedule, named_schedule
from stagetrain.setting import CompressionSetting
from stagetrain.training import TrainResult, train

__all__ = [
    "TABLE_1",
    "Attachment",
    "CompressionSetting",
    "ConversationCollator",
    "ImageGroups",
    "Sample",
    "Schedule",
    "Stage",
    "StageCost",
    "StageTrainError",
    "StepBatches",
    "TrainConfig",
    "TrainResult",
    "attach",
    "compression_ratio_percent",
    "draw_questions",
    "edge_schedule",
    "learning_rate_factor",
    "named_schedule",
    "plan_schedule",
    "train",
    "visual_token_count",
]
