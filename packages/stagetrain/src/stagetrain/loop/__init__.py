"""The training loop: stages on Trainer, checkpoints, what a step is made of."""
