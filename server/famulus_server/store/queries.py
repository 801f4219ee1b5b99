"""The queries of `queries.sql` by name."""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Literal

Engine = Literal["sqlite", "postgres"]


class Scope(Enum):
    """Whose rows a query is about, as the line of its header says that begins so."""

    TENANT = ""  # no such line: those of the tenant that is its first argument
    ACROSS = "-- across tenants: "
    NONE = "-- without tenant: "


_HEAD = re.compile(r"-- name: (?P<name>\w+)(?: \[(?P<engine>sqlite|postgres)\])?")
_LOCK = re.compile(r"/\* (FOR [^*]+) \*/")
_ARGUMENT = re.compile(r"\$(\d+)")
_FILE = Path(__file__).with_name("queries.sql")


class BadQueryFile(Exception):
    """The file of queries breaks its own rules: a fault of ours, found at the start."""


def load(engine: Engine, text: str | None = None) -> Mapping[str, str]:
    """The statements for one engine, by name.

    Raises BadQueryFile for a malformed or repeated name, and for a query without a description or a statement.
    """
    return MappingProxyType({name: statement for name, (statement, _) in _parse(engine, text).items()})


def scopes(engine: Engine, text: str | None = None) -> Mapping[str, Scope]:
    """Whose rows the queries for one engine are about, by name. Raises BadQueryFile, too."""
    return MappingProxyType({name: scope for name, (_, scope) in _parse(engine, text).items()})


def locking(statements: Mapping[str, str]) -> Mapping[str, str]:
    """Those statements of PostgreSQL that can lock what they find, doing so: `/* FOR ... */` is in force."""
    return {name: _LOCK.sub(r"\1", text) for name, text in statements.items() if _LOCK.search(text)}


def together(statements: Sequence[str]) -> str:
    """One statement of PostgreSQL that executes several which change rows; their arguments follow one another. Its row
    has how many each of them changed. None sees what the others do."""
    parts, counts, arguments = [], [], 0
    for number, statement in enumerate(statements):
        parts.append(f"p{number} AS ({_shifted(statement, arguments)} RETURNING 1)")
        counts.append(f"(SELECT count(*) FROM p{number})")  # noqa: S608 - the number is ours
        arguments += max(int(found) for found in _ARGUMENT.findall(statement))
    return f"WITH {', '.join(parts)} SELECT {', '.join(counts)}"


def _shifted(statement: str, by: int) -> str:
    return _ARGUMENT.sub(lambda found: f"${int(found[1]) + by}", statement)


def _parse(engine: Engine, text: str | None) -> Mapping[str, tuple[str, Scope]]:
    queries: dict[str, tuple[str, Scope]] = {}
    for block in re.split(r"(?m)^(?=-- name:)", _FILE.read_text("utf-8") if text is None else text)[1:]:
        head, *lines = block.splitlines()
        match = _HEAD.fullmatch(head)
        if match is None:
            raise BadQueryFile(f"malformed: {head}")
        if not lines or not lines[0].startswith("-- "):
            raise BadQueryFile(f"no description: {head}")
        statement = "\n".join(line for line in lines if not line.startswith("--")).strip()
        if not statement.endswith(";"):
            raise BadQueryFile(f"no statement that ends with a semicolon: {head}")
        if match["engine"] in (None, engine):
            if match["name"] in queries:
                raise BadQueryFile(f"repeated: {head}")
            queries[match["name"]] = statement.removesuffix(";"), _scope(lines)
    return queries


def _scope(lines: list[str]) -> Scope:
    marks = (Scope.ACROSS, Scope.NONE)
    return next((mark for line in lines for mark in marks if line.startswith(mark.value)), Scope.TENANT)
