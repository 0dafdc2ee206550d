"""DistillJob."""
