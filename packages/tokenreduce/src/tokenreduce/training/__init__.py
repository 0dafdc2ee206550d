"""Reducing visual tokens while a model is trained; import the part you need."""
