"""Errors of dataset files."""


class DataError(ValueError):
    """A dataset file is not what its format asks for; says file, place, expected and got."""
