"""Trainer whose checkpoints are there whole or not at all, and are of one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import rotate_checkpoints

from stagetrain.errors import CheckpointError
from stagetrain.loop import checkpoints


class CheckpointingTrainer(Trainer):
    """`Trainer` that writes checkpoints beside their place, and goes on only from whole ones of the same run.

    Args:
        identity: What must be equal for a checkpoint to be of this run, as JSON values by name.
        *args: Trainer's own.
        **kwargs: Trainer's own.

    Attributes:
        losses: Loss of every optimizer step since the run's beginning.
        skipped: Messages about samples left out since then.
        resumed_from_step: Step of the checkpoint that the last `train` went on from; None: from the start.
    """

    def __init__(self, identity: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        self.losses: list[float] = []
        self.skipped: list[str] = []
        self.resumed_from_step: int | None = None
        self._identity = identity
        self._draft: Path | None = None
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; True means the newest checkpoint that is whole.

        Raises:
            CheckpointError: The checkpoint is damaged, of another run, or not there.
        """
        resume = self._resume_path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.resumed_from_step = None if resume is None else checkpoints.step_of(Path(resume))
        return super().train(resume, *args, **kwargs)

    def _resume_path(self, wanted: str | bool) -> str:
        """The checkpoint to go on from, chosen and checked by the first rank for all."""
        found: list[Any] = [None, None]
        if self.is_world_process_zero():
            folder = Path(cast(str, self.args.output_dir))
            try:
                path = checkpoints.newest_whole(folder) if wanted is True else Path(cast(str, wanted))
                if path is None:
                    raise CheckpointError(f"{folder}: expected a checkpoint to go on from, got none")
                checkpoints.check_identity(path, self._identity)
                if wanted is not True:
                    checkpoints.verify(path)
                found[0] = str(path)
            except CheckpointError as error:
                found[1] = str(error)
        path_text, message = broadcast_object_list(found)
        if message is not None:
            raise CheckpointError(message)
        run = checkpoints.read_run(Path(path_text))
        self.losses[:], self.skipped[:] = run["losses"], run["skipped"]
        return str(path_text)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._draft is None else str(self._draft)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's checkpoint, written beside its place and renamed into it."""
        folder = Path(self._get_output_dir(trial))
        writes = self.args.should_save
        if writes:
            checkpoints.begin_draft(folder)
        self.accelerator.wait_for_everyone()
        self._draft = checkpoints.draft_of(folder)
        try:
            with checkpoints.quiet():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if writes:
                self._publish(folder, self._draft)
        finally:
            self._draft = None
            if writes:
                checkpoints.drop_draft(folder)
        self.accelerator.wait_for_everyone()

    def _publish(self, folder: Path, draft: Path) -> None:
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(draft / name / "trainer_state.json"))
        run = {"identity": self._identity, "losses": self.losses, "skipped": self.skipped}
        checkpoints.publish(draft / name, folder / name, run)
        rotate_checkpoints(str(folder), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            checkpoints.load_model(Path(resume_from_checkpoint), self.model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            checkpoints.load_model(Path(cast(str, self.state.best_model_checkpoint)), self.model)
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_fsdp_enabled and not (Path(checkpoint) / "optimizer.pt").is_file():
            raise CheckpointError(f"{checkpoint}: expected the optimizer's state, got a model alone")
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, RuntimeError, KeyError, EOFError) as error:
            raise CheckpointError(f"{checkpoint}: expected the optimizer's state, got {error}") from error
