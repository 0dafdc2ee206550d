"""Errors a command reports in one line."""


class UserError(Exception):
    """What the user asked for cannot be done: exit code 2."""


class CheckFailedError(Exception):
    """A check found a fault: exit code 1."""
