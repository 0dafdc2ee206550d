"""A sweep over variants of the main job, and which of them nothing beats."""
