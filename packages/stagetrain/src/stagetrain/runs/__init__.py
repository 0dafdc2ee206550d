"""A run from a file: reading and checking it, loading its parts, writing its model."""
