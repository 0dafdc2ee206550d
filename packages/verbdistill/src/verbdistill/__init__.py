"""Layer-wise distillation of vision-language models through verbalizers (VLsI)."""

from verbdistill.config import DistillConfig
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
from verbdistill.losses.losses import ar_loss, kl_loss, kl_matrix
from verbdistill.matching.matching import match_layers
from verbdistill.models.states import ResponseStates, response_states
from verbdistill.models.targets import default_targets
from verbdistill.models.vocabulary import check_vocabularies
from verbdistill.runs.storing import load_verbalizers, report, save_student, save_verbalizers
from verbdistill.steps.distilling import DistillResult, distill
from verbdistill.steps.phases import Pair, interaction_loss
from verbdistill.verbalizers.verbalizers import Verbalizers

__all__ = [
    "BatchError",
    "CheckpointError",
    "ConfigError",
    "DistillConfig",
    "DistillResult",
    "MatchingError",
    "NonFiniteLossError",
    "Pair",
    "ResponseStates",
    "TargetError",
    "UnsupportedModelError",
    "VerbDistillError",
    "Verbalizers",
    "VerbalizersError",
    "VocabularyMismatchError",
    "ar_loss",
    "check_vocabularies",
    "default_targets",
    "distill",
    "interaction_loss",
    "kl_loss",
    "kl_matrix",
    "load_verbalizers",
    "match_layers",
    "report",
    "response_states",
    "save_student",
    "save_verbalizers",
]
