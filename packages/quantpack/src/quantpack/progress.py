"""How long work tells how far it is."""

from collections.abc import Callable

# (weights or steps done, in all, name of what was just done)
OnProgress = Callable[[int, int, str], None]
