"""The database, either of the two, and the keys to what is encrypted there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.findings import Finding, fail, judge_clock, ok, warn

if TYPE_CHECKING:
    from famulus_server.config import Settings
    from famulus_server.store.errors import StoreUnusable
    from famulus_server.store.postgres_inspection import PostgresSight
    from famulus_server.store.sqlite_inspection import FileSight

# Where a statement takes longer, each turn of a run waits for it several times.
_SLOW_SECONDS = 0.01
_VERY_SLOW_SECONDS = 0.1
# What looking through an SQLite file may take: three seconds read some gigabytes.
_LOOK_SECONDS = 3.0
_MEGABYTE = 1_000_000
_LEAST_FREE = 100 * _MEGABYTE
_LITTLE_FREE = 1_000 * _MEGABYTE
_LARGE_LOG = 256 * _MEGABYTE


async def check_database(settings: Settings) -> Sequence[Finding]:
    """What is there, and whether it can be worked with."""
    from famulus_server.store.errors import StoreUnusable

    try:
        return await _findings(settings)
    except StoreUnusable as error:
        return [_unusable(error)]


async def check_encryption(settings: Settings) -> Sequence[Finding]:
    """Whether the operator's keys can be had, and are those that the database needs."""
    from famulus_server.encryption.aes import kek_id
    from famulus_server.encryption.errors import KeyUnusable
    from famulus_server.store.errors import StoreUnusable
    from famulus_server.wiring.stores import operators_keys

    try:
        ids = [kek_id(key) for key in await asyncio.to_thread(operators_keys, settings.encryption)]
    except KeyUnusable as error:
        return [fail("keys", str(error), "Restore that key from its copy: nothing else opens what it has sealed.")]
    try:
        needed = await _key_ids(settings)
    except StoreUnusable:
        return [ok("keys", _having(ids)), warn("keys in use", "the database could not be asked", "See above.")]
    if missing := [one for one in needed if one not in ids]:
        remedy = "Name each of them in [encryption] key_file or old_key_files; nothing else opens these rows."
        return [ok("keys", _having(ids)), fail("keys in use", f"the database needs {', '.join(missing)}", remedy)]
    if not ids:
        return [ok("keys", "no encryption: [encryption] has no key, and no row needs one")]
    return [ok("keys", _having(ids)), ok("keys in use", ", ".join(needed) or "none yet")]


async def _key_ids(settings: Settings) -> list[str]:
    if settings.store.url:
        from famulus_server.store.postgres_inspection import key_ids

        return await key_ids(settings.store.url)
    from famulus_server.store.sqlite_inspection import key_ids_in

    return await asyncio.to_thread(key_ids_in, settings.database)


def _having(ids: Sequence[str]) -> str:
    return f"{len(ids)} can be read: {', '.join(ids)}" if ids else "there is none"


async def _findings(settings: Settings) -> list[Finding]:
    if settings.store.url:
        from famulus_server.store.postgres_inspection import inspect_postgres

        return list(_of_postgres(settings, await inspect_postgres(settings.store.url)))
    file = settings.database
    if not file.exists():
        return [ok("", f"SQLite: there is no {file} yet; the server makes it"), *_of_folder(file.parent)]
    from famulus_server.store.sqlite_inspection import inspect_file

    sight = await asyncio.to_thread(inspect_file, file, seconds=_LOOK_SECONDS)
    return [*_of_file(file, sight), *_of_folder(file.parent)]


def _of_postgres(settings: Settings, sight: PostgresSight) -> Iterator[Finding]:
    from famulus_server.store.postgres_schema import shown

    yield ok("", f"{shown(settings.store.url)}: PostgreSQL {sight.version}")
    yield _of_schema(sight.revision, where="the database")
    if sight.read_only:
        yield fail("writes", "the database only reads: a standby?", "Give [store] url the address of the primary.")
    if sight.unbound_role:
        yield warn(
            "role",
            f"row-level security does not bind {sight.unbound_role!r}, a superuser or one with BYPASSRLS",
            "Let the server connect as an ordinary role that owns the database.",
        )
    else:
        yield ok("role", "an ordinary one, which row-level security binds")
    yield _of_latency(sight.statement_seconds)
    yield _of_connections(settings, sight)
    yield judge_clock(sight.seconds_ahead, whose="the database's clock")


def _of_schema(revision: str, *, where: str) -> Finding:
    from famulus_server.store.schema import HEAD

    if not revision:
        return warn(
            "schema", f"{where} has no tables yet", "Nothing, or `famulus-server migrate`: the server makes them."
        )
    if revision < HEAD:
        remedy = "Run `famulus-server migrate`, or start the server, which does the same."
        return warn("schema", f"{revision}, and this version needs {HEAD}", remedy)
    if revision > HEAD:
        remedy = "Start the newer version of the server: this one refuses to."
        return fail("schema", f"{revision}, and this version knows {HEAD} at most", remedy)
    return ok("schema", f"{revision}, as this version needs it")


def _of_latency(seconds: float) -> Finding:
    seen = f"a trivial statement takes {seconds * 1_000:.2f} ms"
    remedy = "Bring database and server closer together, or find out what keeps the database busy."
    if seconds >= _VERY_SLOW_SECONDS:
        return fail("latency", seen, remedy)
    return warn("latency", seen, remedy) if seconds >= _SLOW_SECONDS else ok("latency", seen)


def _of_connections(settings: Settings, sight: PostgresSight) -> Finding:
    from famulus_server.wiring.stores import connections_of

    free, each = sight.max_connections - sight.connections, connections_of(settings)
    seen = (
        f"{sight.connections} of {sight.max_connections} are in use; a replica takes up to {each}, "
        f"so there is room for {max(free // each, 0)} more"
    )
    if free >= each:
        return ok("connections", seen)
    return warn("connections", seen, "Raise max_connections of PostgreSQL, or lower [store] pool.")


def _of_file(file: Path, sight: FileSight) -> Iterator[Finding]:
    yield ok("", f"SQLite: {file}, {_size(sight.size)}")
    yield _of_schema(sight.revision, where=str(file))
    if sight.faults is None:
        yield warn(
            "integrity",
            f"could not be looked through in {_LOOK_SECONDS:g} s",
            f"Run `sqlite3 {file} 'PRAGMA quick_check'` at a quiet hour.",
        )
    elif sight.faults:
        yield fail("integrity", "; ".join(sight.faults), "Stop the server and restore the file from a backup.")
    else:
        yield ok("integrity", "SQLite finds nothing wrong")
    seen = f"the write-ahead log has {_size(sight.log_size)}"
    if sight.log_size > _LARGE_LOG:
        yield warn("log", seen, "End whatever else has the file open: a reader keeps the log from being emptied.")
    else:
        yield ok("log", seen)
    yield _of_space(sight.disk_free)


def _of_space(free: int) -> Finding:
    seen = f"{_size(free)} are free"
    if free < _LEAST_FREE:
        return fail("disk", seen, "Make room: a full disk stops all writes.")
    return warn("disk", seen, "Make room soon.") if free < _LITTLE_FREE else ok("disk", seen)


def _of_folder(folder: Path) -> Iterator[Finding]:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield fail("folder", f"this user may not write to {there}", "Change its owner, or run as the owner.")


def _unusable(error: StoreUnusable) -> Finding:
    from famulus_server.store.errors import NotAStore, SchemaTooNew

    match error:
        case SchemaTooNew():
            remedy = "Start the newer version of the server."
        case NotAStore():
            remedy = "Give famulus a database of its own, with the encoding UTF8, on PostgreSQL 15 or newer."
        case _ if "password" in str(error):
            remedy = "Correct the password: in ~/.pgpass, or in the URL, best given as FAMULUS_STORE_URL."
        case _:
            remedy = "Start the database, or correct [store] url."
    return fail("", str(error), remedy)


def _size(number: int) -> str:
    for unit, factor in (("GB", 1_000 * _MEGABYTE), ("MB", _MEGABYTE)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number / 1_000:,.0f} kB"
