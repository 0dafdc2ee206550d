"""Where work runs; the only place that imports ray."""
