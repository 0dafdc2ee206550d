"""TrainJob."""
