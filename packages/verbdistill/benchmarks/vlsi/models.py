"""Teachers from a directory, and fresh students that share their eyes and words."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


def load_teacher(directory: Path) -> tuple[Any, Any]:
    """(frozen model, processor)."""
    model = AutoModelForImageTextToText.from_pretrained(directory)
    return model.eval().requires_grad_(False), AutoProcessor.from_pretrained(directory)


def fresh_student(teacher: Any, num_layers: int, seed: int) -> Any:
    """A model of the teacher's class with fewer decoder layers, all new but for the vision tower.

    What the paper's students have: a vision encoder that can see. Their language model is trained, too, ours is not.
    """
    torch.manual_seed(seed)
    config = copy.deepcopy(teacher.config)
    config.text_config.num_hidden_layers = num_layers
    config.text_config.layer_types = None
    student = type(teacher)(config)
    std = config.text_config.initializer_range
    with torch.no_grad():
        for parameter in student.model.multi_modal_projector.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    student.model.vision_tower.load_state_dict(teacher.model.vision_tower.state_dict())
    return student
