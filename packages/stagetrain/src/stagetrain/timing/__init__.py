"""Step times of a schedule against plain training."""
