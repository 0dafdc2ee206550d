"""The SQLite file of a store's jobs: where it is, how it is opened, and what version its tables have."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlmpress_services.errors import InvalidRequestError
from vlmpress_services.locking import locked

BUSY_TIMEOUT_S = 30.0
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    request_id TEXT NOT NULL UNIQUE,
    spec BLOB NOT NULL,
    state INTEGER NOT NULL,
    create_time_ns INTEGER NOT NULL,
    update_time_ns INTEGER NOT NULL,
    progress REAL NOT NULL DEFAULT 0,
    message TEXT NOT NULL DEFAULT '',
    result TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 1,
    train_progress BLOB NOT NULL DEFAULT x'',
    distill_progress BLOB NOT NULL DEFAULT x'',
    attempt INTEGER NOT NULL DEFAULT 0,
    num_lost INTEGER NOT NULL DEFAULT 0,
    runner TEXT NOT NULL DEFAULT 'local',
    log TEXT NOT NULL DEFAULT ''
)
"""
# What tables without a version may lack.
_LATER = {
    **dict.fromkeys(("train_progress", "distill_progress"), "BLOB NOT NULL DEFAULT x''"),
    **dict.fromkeys(("attempt", "num_lost"), "INTEGER NOT NULL DEFAULT 0"),
    "runner": "TEXT NOT NULL DEFAULT 'local'",
    "log": "TEXT NOT NULL DEFAULT ''",
}


class JobDatabase:
    """Opens its file for each use, so any thread or process may use it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.sqlite3"
        self._prepared = False

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """One transaction; what it wrote survives a loss of power once the block has ended.

        Raises:
            InvalidRequestError: A later version of this program made the file.
        """
        if not self._prepared:
            self._prepare()
        with self._connected() as database, database:
            yield database

    def _prepare(self) -> None:
        """Makes the table; by itself SQLite does not wait for its turn to begin a write-ahead log."""
        with locked(self.path.with_name("jobs.sqlite3.lock")), self._connected() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise InvalidRequestError(
                    f"{self.path}: expected jobs of version {SCHEMA_VERSION} or earlier, got {version}"
                )
            database.execute("PRAGMA journal_mode = WAL")
            with database:
                database.execute(_SCHEMA)
                there = {row["name"] for row in database.execute("PRAGMA table_info(jobs)")}
                for name in _LATER.keys() - there:
                    database.execute(f"ALTER TABLE jobs ADD COLUMN {name} {_LATER[name]}")
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._prepared = True

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)
        try:
            database.row_factory = sqlite3.Row
            # With a write-ahead log, NORMAL could lose the last answers to a loss of power.
            database.execute("PRAGMA synchronous = FULL")
            yield database
        finally:
            database.close()
