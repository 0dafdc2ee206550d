"""EvaluateJob."""
