"""How every command shows progress, reports errors and ends."""

from vlmpress.cli.errors import CheckFailedError, UserError
from vlmpress.cli.progress_bars import Progress, progress
from vlmpress.cli.running import run

__all__ = ["CheckFailedError", "Progress", "UserError", "progress", "run"]
