"""Ray workers: the only place that imports ray."""
