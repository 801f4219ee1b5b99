"""Python client of famulus.

`FamulusClient` (asyncio) and `FamulusSyncClient` (threads) follow runs and resume broken streams by themselves.
The generated messages and stubs are in `famulus.v1`, and work without this module's names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from famulus.client import FamulusClient
    from famulus.errors import FamulusError, GapError, ToolError, Violation
    from famulus.retry import RetryPolicy
    from famulus.stream import RunStream
    from famulus.sync_client import FamulusSyncClient
    from famulus.sync_stream import SyncRunStream
    from famulus.view import RunResult, RunView

__all__ = [
    "FamulusClient",
    "FamulusError",
    "FamulusSyncClient",
    "GapError",
    "RetryPolicy",
    "RunResult",
    "RunStream",
    "RunView",
    "SyncRunStream",
    "ToolError",
    "Violation",
]

# Looked up on first use (PEP 562): whoever only wants the messages of `famulus.v1` does not load grpc.
_HOMES = {
    "FamulusClient": "client",
    "FamulusError": "errors",
    "FamulusSyncClient": "sync_client",
    "GapError": "errors",
    "RetryPolicy": "retry",
    "RunResult": "view",
    "RunStream": "stream",
    "RunView": "view",
    "SyncRunStream": "sync_stream",
    "ToolError": "errors",
    "Violation": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
