"""The tools that every runner has."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from famulus import ToolError

SLOW = 30.0  # seconds


def echo(text: str) -> str:
    return f"echo:{text}"


def add(a: int, b: int) -> int:
    return a + b


def tell() -> dict[str, bool]:
    return {"told": True}


def refuse() -> str:
    raise ToolError("told to refuse")


async def slow() -> str:
    await asyncio.sleep(SLOW)
    return "late"


def large() -> str:
    return "x" * ((1 << 20) + 1)


_KNOWN: Mapping[str, Callable[..., Any]] = {tool.__name__: tool for tool in (echo, add, tell, refuse, slow, large)}


def tools_named(names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """Those of the tools that a step names. One that no runner has stays unknown to the client, too."""
    return {name: _KNOWN[name] for name in names if name in _KNOWN}
