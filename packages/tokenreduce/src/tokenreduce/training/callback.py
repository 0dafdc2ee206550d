"""A schedule in a `transformers.Trainer`."""

from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from tokenreduce.attachment import ReductionHandle
from tokenreduce.reducers.drawing import keyed
from tokenreduce.reducing import Reducer
from tokenreduce.training.schedules import ReductionSchedule


class ReductionCallback(TrainerCallback):
    """Gives an attached model the reducer of each training step, and one of its own to evaluations.

    The reducer is a function of `state.global_step` and the optimizer's learning rate (that of its first parameter
    group, as the Trainer logs it), so a run resumed from a checkpoint goes on as the whole one does. What a
    reducer draws at random also differs between the micro-batches of a step and between data-parallel processes.

    Between steps, and so in every evaluation and after the training, the handle has the evaluation's reducer.
    """

    def __init__(self, handle: ReductionHandle, schedule: ReductionSchedule, evaluation: Reducer | None = None) -> None:
        """Takes what `attach` returned.

        Args:
            handle: Of the model that is trained.
            schedule: Says which reducer a step uses.
            evaluation: What evaluations and predictions use; None: what the handle has now.
        """
        self.handle = handle
        self.schedule = schedule
        self.evaluation = handle.reducer if evaluation is None else evaluation
        self._micro_batch = 0
        handle.reducer = self.evaluation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation may come before the first step."""
        self.handle.reducer = self.evaluation

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The step's reducer, for its first micro-batch."""
        self._micro_batch = 0
        self._schedule(args, state, kwargs["optimizer"])

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same for the next micro-batch, with other draws."""
        self._micro_batch += 1
        self._schedule(args, state, kwargs["optimizer"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluations come between two steps."""
        self.handle.reducer = self.evaluation

    def _schedule(self, args: TrainingArguments, state: TrainerState, optimizer: Any) -> None:
        reducer = self.schedule.at(state.global_step, float(optimizer.param_groups[0]["lr"]))
        stream = self._micro_batch * args.world_size + args.process_index
        self.handle.reducer = keyed(reducer, step=state.global_step, stream=stream)
