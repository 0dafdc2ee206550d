"""Stages, the schedules they make, and what these cost."""
