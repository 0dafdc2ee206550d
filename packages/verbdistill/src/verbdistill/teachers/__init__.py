"""What a teacher says of a batch, wherever it runs."""
