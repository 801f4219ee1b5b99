"""What can be seen of an SQLite file, also while a server has it open, for whoever looks for what is wrong. Changes
nothing."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from famulus_server.store import queries
from famulus_server.store.errors import NotAStore
from famulus_server.store.schema import revision

# SQLite asks so often whether it shall go on.
_STEPS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSight:
    """Sizes in bytes. `faults` are what SQLite finds wrong with the file; None: it could not look all through it in
    time."""

    revision: str  # of the schema
    faults: list[str] | None
    size: int
    log_size: int  # of the write-ahead log
    disk_free: int


def inspect_file(path: Path, *, seconds: float) -> FileSight:
    """What is there; looks through the file for no longer than `seconds`. Raises StoreUnusable or OSError."""
    log = path.with_name(f"{path.name}-wal")
    return FileSight(
        revision=revision(path),
        faults=_faults(path, seconds),
        size=path.stat().st_size,
        log_size=log.stat().st_size if log.exists() else 0,
        disk_free=shutil.disk_usage(path.parent).free,
    )


def key_ids_in(path: Path) -> list[str]:
    """The operator's keys that data keys are wrapped by, by their ids. Raises StoreUnusable."""
    if not path.exists() or not revision(path):
        return []
    with _reading(path) as connection:
        return [key_id for key_id, _ in connection.execute(queries.load("sqlite")["data_keys_wrappings"])]


def _faults(path: Path, seconds: float) -> list[str] | None:
    give_up_at = time.monotonic() + seconds
    with _reading(path) as connection:
        connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS)
        try:
            told = [text for (text,) in connection.execute("PRAGMA quick_check(3)")]
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return None
            # Some damage ends the look.
            return [str(error)]
    return [] if told == ["ok"] else told


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. Raises NotAStore for what SQLite cannot read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        raise NotAStore(f"{path} cannot be read: {error}") from error
