"""Layer-wise distillation of vision-language models through verbalizers (VLsI)."""

from verbdistill.config import DistillConfig
from verbdistill.data.batches import PairBatch
from verbdistill.data.collating import RecordBatches
from verbdistill.errors import (
    BatchError,
    CheckpointError,
    ConfigError,
    MatchingError,
    NonFiniteLossError,
    TargetError,
    UnsupportedModelError,
    VerbalizersError,
    VerbDistillError,
    VocabularyMismatchError,
)
from verbdistill.losses.cross_entropy import ar_loss
from verbdistill.losses.heads import Head
from verbdistill.losses.pairwise_kl import last_kl, pairwise_kl
from verbdistill.matching.matching import match_layers
from verbdistill.matching.strategies import Match, match_weights
from verbdistill.models.parts import head_of
from verbdistill.models.states import ResponseStates, response_states
from verbdistill.models.targets import default_targets
from verbdistill.models.vocabulary import check_vocabularies
from verbdistill.runs.students import report_of, save_student
from verbdistill.steps.distilling import distill
from verbdistill.steps.finetuning import finetune
from verbdistill.steps.interaction import InteractionHistory, interact
from verbdistill.steps.result import DistillResult
from verbdistill.steps.verbalization import train_verbalizers
from verbdistill.teachers.local import LocalTeacher
from verbdistill.teachers.teacher import Teacher, TeacherAnswer, TruncatedAnswer
from verbdistill.verbalizers.storing import load_verbalizers, save_verbalizers
from verbdistill.verbalizers.verbalizers import Verbalizers

__all__ = [
    "BatchError",
    "CheckpointError",
    "ConfigError",
    "DistillConfig",
    "DistillResult",
    "Head",
    "InteractionHistory",
    "LocalTeacher",
    "Match",
    "MatchingError",
    "NonFiniteLossError",
    "PairBatch",
    "RecordBatches",
    "ResponseStates",
    "TargetError",
    "Teacher",
    "TeacherAnswer",
    "TruncatedAnswer",
    "UnsupportedModelError",
    "VerbDistillError",
    "Verbalizers",
    "VerbalizersError",
    "VocabularyMismatchError",
    "ar_loss",
    "check_vocabularies",
    "default_targets",
    "distill",
    "finetune",
    "head_of",
    "interact",
    "last_kl",
    "load_verbalizers",
    "match_layers",
    "match_weights",
    "pairwise_kl",
    "report_of",
    "response_states",
    "save_student",
    "save_verbalizers",
    "train_verbalizers",
]
