"""The ledger: what is known of each instance, study, job, result and delivery. SQLite, WAL, flushed at every commit.

One connection serves all threads of a process, one after the other; other processes (`qsm-edge queue`) wait their turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsm_edge.errors import ResourceError, UsageError
from qsm_edge.publish import sync_file

SCHEMA_VERSION = 1
_BUSY_S = 60.0
#: An error of the disk means that it is full where less than this is free.
_NOTHING_FREE = 1 << 20
_OF_THE_SYSTEM = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}

_SCHEMA = """
CREATE TABLE instances (
    name TEXT PRIMARY KEY, sop TEXT NOT NULL, series TEXT NOT NULL, study TEXT NOT NULL,
    size INTEGER NOT NULL, sop_class TEXT NOT NULL, syntax TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('held', 'ignored', 'purged')), code TEXT NOT NULL DEFAULT '',
    door TEXT NOT NULL, caller TEXT NOT NULL, address TEXT NOT NULL, received_s REAL NOT NULL
) STRICT;
CREATE INDEX instances_of_study ON instances (study, series);
CREATE TABLE studies (
    study TEXT PRIMARY KEY, arrivals INTEGER NOT NULL, looked INTEGER NOT NULL DEFAULT 0,
    hurry INTEGER NOT NULL DEFAULT 0, received_s REAL NOT NULL
) STRICT;
CREATE TABLE findings (
    study TEXT NOT NULL, number INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('held', 'refused', 'given_up')),
    code TEXT NOT NULL, text TEXT NOT NULL, series TEXT NOT NULL, files INTEGER NOT NULL, since_s REAL NOT NULL,
    PRIMARY KEY (study, number)
) STRICT;
CREATE TABLE jobs (
    job TEXT PRIMARY KEY, study TEXT NOT NULL,
    state TEXT NOT NULL
        CHECK (state IN ('ready', 'working', 'done', 'refused', 'failed', 'superseded', 'purged')),
    code TEXT NOT NULL DEFAULT '', text TEXT NOT NULL DEFAULT '', verdict TEXT NOT NULL DEFAULT '',
    attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0, not_before_s REAL NOT NULL DEFAULT 0,
    memory_bytes INTEGER NOT NULL, created_s REAL NOT NULL, changed_s REAL NOT NULL, seconds REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, created_s);
CREATE TABLE job_instances (job TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (job, name)) STRICT;
CREATE TABLE results (
    job TEXT NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (job, path)
) STRICT;
CREATE TABLE deliveries (
    job TEXT NOT NULL, path TEXT NOT NULL, destination TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'refused', 'cancelled')),
    attempts INTEGER NOT NULL DEFAULT 0, not_before_s REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', changed_s REAL NOT NULL,
    PRIMARY KEY (job, path, destination), FOREIGN KEY (job, path) REFERENCES results (job, path)
) STRICT;
CREATE INDEX deliveries_due ON deliveries (destination, state, not_before_s);
CREATE TABLE watched (
    file TEXT PRIMARY KEY, size INTEGER NOT NULL, changed_ns INTEGER NOT NULL, outcome TEXT NOT NULL
) STRICT;
"""


@dataclass
class _Turn:
    """What one thread wants done in a transaction that others share."""

    act: Callable[[sqlite3.Connection], Path | None]
    error: BaseException | None = None
    over: bool = False


class Ledger:
    """An open ledger. Use `transaction` to change it, `together` where many threads do, and `rows` to ask it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._turns: list[_Turn] = []
        self._turns_lock = threading.Lock()
        with speaking_of_disk(path.parent):
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._db.row_factory = sqlite3.Row
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    self._db.execute(f"PRAGMA {pragma}")
                self._make()
            except BaseException:
                self._db.close()
                raise

    def _make(self) -> None:
        with self.transaction() as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version == 0:
                for statement in _SCHEMA.split(";")[:-1]:
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                what = "the spool's ledger was made by another version of this program"
                raise UsageError("bad_value", what, where=self.path.name, got=version, wanted=SCHEMA_VERSION)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done inside is on the disk when this ends, or none of it. Raises ResourceError out_of_disk."""
        with self._lock, speaking_of_disk(self.path.parent):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def together(self, act: Callable[[sqlite3.Connection], Path | None]) -> None:
        """A transaction for all threads that wait for one at this moment: one flush to the disk serves them all.

        act : done for each, in the order of their coming; the folder that it returns is flushed before the commit. Where
        it raises, what it did to the ledger is undone, and the others' is not; where the commit fails, all of them raise.
        """
        mine = _Turn(act)
        with self._turns_lock:
            self._turns.append(mine)
        with self._lock:
            if not mine.over:  # else somebody who was here before us has done it
                with self._turns_lock:
                    turns, self._turns = self._turns, []
                self._take(turns)
        if mine.error is not None:
            raise mine.error

    def _take(self, turns: Sequence[_Turn]) -> None:
        try:
            with self.transaction() as db:
                folders = {self._one(db, turn) for turn in turns}
                for folder in folders:
                    if folder is not None and os.name != "nt":  # where a folder cannot be flushed
                        sync_file(folder)
        except BaseException as error:
            for turn in turns:
                turn.error = turn.error or error
        finally:
            for turn in turns:
                turn.over = True

    def _one(self, db: sqlite3.Connection, turn: _Turn) -> Path | None:
        db.execute("SAVEPOINT turn")
        folder = None
        try:
            folder = turn.act(db)
        except Exception as error:
            turn.error = error
            db.execute("ROLLBACK TO turn")  # raises where a full disk has undone all of the transaction
        db.execute("RELEASE turn")
        return folder

    def rows(self, question: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The answer to one SELECT."""
        with self._lock, speaking_of_disk(self.path.parent):
            return list(self._db.execute(question, values))

    def close(self) -> None:
        """Close the connection; the ledger can be opened again."""
        with self._lock:
            self._db.close()


@contextlib.contextmanager
def speaking_of_disk(where: Path) -> Iterator[None]:
    """Turn SQLite's errors about a full disk into ours, and those about a closed, broken or busy one into the system's."""
    try:
        yield
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        free = shutil.disk_usage(where).free
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and free < _NOTHING_FREE):
            raise ResourceError("out_of_disk", "there is no room for the ledger", got=f"{free / 1e6:.0f} MB") from error
        if code in _OF_THE_SYSTEM:
            number = _OF_THE_SYSTEM[code]
            raise OSError(number, os.strerror(number)) from error
        raise
