"""What a micro-batch adds to the loss of its step."""

from typing import Any

import torch


def num_images(batch: dict[str, Any]) -> int:
    """Images of a batch, or their tiles or patches where a model takes those one by one."""
    pixels = batch.get("pixel_values")
    return len(pixels) if isinstance(pixels, torch.Tensor) else 0


def share_of_loss(loss: torch.Tensor, outputs: Any, answers: Any, images: Any) -> torch.Tensor:
    """A micro-batch's part of the loss of a step, so that parts sum to what the step's batch has as a whole.

    Args:
        loss: The model's: a mean over answer tokens, plus what it names `auxiliary_loss`, a mean over images.
        outputs: The model's outputs by name.
        answers: The micro-batch's answer tokens over the step's; 0 where it has none.
        images: Its images over the step's.
    """
    auxiliary = outputs.get("auxiliary_loss")
    if not answers:
        # Without an answer the model's mean is 0 / 0; every rank must still have something to go back through.
        logits = outputs.get("logits")
        loss = (loss if logits is None else logits.sum()) * 0.0
        return loss if auxiliary is None else loss + auxiliary * images
    shared = loss * answers
    return shared if auxiliary is None else shared + auxiliary * (images - answers)
