"""The environment: which variables are settings."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from famulus_server.config.documents import entries, read
from famulus_server.config.settings import SCALARS

# What Kubernetes sets in every pod for a service whose name begins with ours.
_OF_A_KUBERNETES_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP|SCTP)\w*)$")


def variable_of(section: str, key: str) -> str:
    """The name of the variable that gives a key."""
    return f"FAMULUS_{section}_{key}".upper()


def variables(path: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that the settings use, and what each of them gives. Raises ConfigError."""
    used = {
        variable_of(name, field.name): f"[{name}] {field.name}"
        for name, kind in SCALARS.items()
        for field in msgspec.structs.fields(kind)
        if variable_of(name, field.name) in environ
    }
    document = read(path) if path else {}
    for key, entry in entries(document, "models", str(path)):
        if "api_key_env" in entry:
            used[str(entry["api_key_env"])] = f"the key of the model {entry.get('name', key)}"
    return used


def key_sources(path: Path | None) -> dict[str, str]:
    """Where the keys of models come from, by the models' names; no key has none. Raises ConfigError."""
    document = read(path) if path else {}
    kinds = {"api_key_env": "the variable", "api_key_file": "the file"}
    return {
        str(entry.get("name")): f"{words} {entry[kind]}"
        for _, entry in entries(document, "models", str(path))
        for kind, words in kinds.items()
        if kind in entry
    }


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables of the environment that look like settings of a section, and are none."""
    known = {variable_of(name, field.name) for name, kind in SCALARS.items() for field in msgspec.structs.fields(kind)}
    sections = tuple(f"FAMULUS_{name}_".upper() for name in SCALARS)
    return sorted(
        name
        for name in environ
        if name.startswith(sections) and name not in known and not _OF_A_KUBERNETES_SERVICE.search(name)
    )
