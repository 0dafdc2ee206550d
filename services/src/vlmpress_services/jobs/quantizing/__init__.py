"""PackJob and SweepJob."""
