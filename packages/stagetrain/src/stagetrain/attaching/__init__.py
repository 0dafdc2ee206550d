"""Compression inside a model: hooks, what they make of tokens, masks and caches; how it is saved beside the model."""
