"""How a phase trains: optimizer, accumulation, several processes, checkpoints."""
