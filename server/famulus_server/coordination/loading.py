"""Imports what needs the redis package, which takes as long to import as the rest of the server to start: nobody has
to wait for it."""

import asyncio
from importlib import import_module
from threading import Lock
from typing import Any

# The package's modules need each other in circles: imported by two threads at once, one of them sees half of it.
_one_at_a_time = Lock()


async def load(name: str) -> Any:
    """A module of this package. Raises what its import raises."""
    return await asyncio.to_thread(_import, name)


def _import(name: str) -> Any:
    with _one_at_a_time:
        return import_module(f"famulus_server.coordination.{name}")
