"""Artifacts by digest and tag."""
