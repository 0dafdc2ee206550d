"""Training with visual tokens pooled inside the LLM, stage by stage (LLaVolta)."""

from stagetrain.config import TrainConfig, learning_rate_factor
from stagetrain.conversations import ConversationCollator
from stagetrain.groups import ImageGroups, Sample, StepBatches, draw_questions
from stagetrain.schedule import TABLE_1, Schedule, Stage, edge_schedule, named_schedule
from stagetrain.training import TrainResult, train

__all__ = [
    "TABLE_1",
    "ConversationCollator",
    "ImageGroups",
    "Sample",
    "Schedule",
    "Stage",
    "StepBatches",
    "TrainConfig",
    "TrainResult",
    "draw_questions",
    "edge_schedule",
    "learning_rate_factor",
    "named_schedule",
    "train",
]
