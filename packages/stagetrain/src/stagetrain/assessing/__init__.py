"""How redundant the visual tokens of a trained model are, without training it (section 4.2, Figure 1)."""

from stagetrain.assessing.attention import LayerAttention
from stagetrain.assessing.questions import Question, questions_of
from stagetrain.assessing.report import assessment_table, assessment_to_json
from stagetrain.assessing.scoring import Score
from stagetrain.assessing.sweeping import Assessment, SettingResult, assess, sweep_settings

__all__ = [
    "Assessment",
    "LayerAttention",
    "Question",
    "Score",
    "SettingResult",
    "assess",
    "assessment_table",
    "assessment_to_json",
    "questions_of",
    "sweep_settings",
]
