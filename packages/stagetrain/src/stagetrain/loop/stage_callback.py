"""What Trainer tells the stages and the person who waits."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stagetrain.loop.staging import Progress, StageSwitch
from stagetrain.loop.throughput import Throughput


class StageCallback(TrainerCallback):
    """Before each step its stage; after it throughput and progress."""

    def __init__(self, switch: StageSwitch, throughput: Throughput, losses: list[float]) -> None:
        self._switch = switch
        self._throughput = throughput
        self._losses = losses
        self.on_progress: Progress | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Frees frozen parts of a backward pass that only reentrant checkpointing needs to begin at the inputs."""
        settings = args.activation_checkpointing_kwargs
        if args.activation_checkpointing and not (isinstance(settings, dict) and settings.get("use_reentrant")):
            kwargs["model"].disable_input_require_grads()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Enters the step's stage; where stages begin anew, the optimizer forgets at its first step."""
        self._switch.enter(state.global_step)
        if self._switch.begins_anew(state.global_step):
            kwargs["optimizer"].state.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells how far the run is."""
        stage = self._switch.log[-1].index
        self._throughput.stop(stage)
        if self.on_progress is not None and state.is_world_process_zero:
            note = f"stage {stage + 1} loss {self._losses[-1]:.3f} {self._throughput.recent():.0f} tokens/s"
            self.on_progress(state.global_step, state.max_steps, note)
