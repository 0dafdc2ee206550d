"""The main job: from data to a packed edge model and a report."""
