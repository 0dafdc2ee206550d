"""Weights that are spread over processes, gathered when a run ends."""

from typing import Any

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class WholeWeights(TrainerCallback):
    """Gathers what FSDP spreads.

    Attributes:
        weights: By name, after the run, on the first process; None without FSDP, where the model itself has them.
    """

    def __init__(self) -> None:
        self.weights: dict[str, Any] | None = None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Every process takes part."""
        if args.fsdp:
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            self.weights = get_model_state_dict(kwargs["model"], options=options)
