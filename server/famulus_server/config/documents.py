"""The TOML file: its tables, and what becomes of them."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from famulus_server.config.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)


def read(path: Path) -> dict[str, Any]:
    """The whole file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(str(path), "", f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "", f"is not TOML: {error}") from error


def entries(document: Mapping[str, Any], name: str, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables of an array, each with its key. Raises ConfigError."""
    entries = document.get(name, [])
    if not isinstance(entries, list):
        raise ConfigError(source, name, f"must be an array of tables: [[{name}]]")
    for index, entry in enumerate(entries):
        key = f"{name}[{index}]"
        if not isinstance(entry, dict):
            raise ConfigError(source, key, f"must be a table: [[{name}]]")
        yield key, entry


def table(document: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    """The table of that name, empty where there is none. Raises ConfigError."""
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(source, name, f"must be a table: [{name}]")
    return table


def convert(table: Any, kind: type[S], source: str, key: str, *, from_text: bool = False) -> S:
    """A table as the settings that it gives; `from_text` reads numbers and words from texts. Raises ConfigError."""
    try:
        return msgspec.convert(table, kind, strict=not from_text)
    except msgspec.ValidationError as error:
        # msgspec says: "Expected `int`, got `str` - at `$.slots`"
        reason, _, path = str(error).partition(" - at `$")
        raise ConfigError(source, key if from_text else key + path.rstrip("`"), reason) from error
