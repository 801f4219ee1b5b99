"""A server in this process, for `serve` and `demo`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from famulus_server.cli.console import note
from famulus_server.cli.signals import StopSignals

if TYPE_CHECKING:
    from famulus_server.config import Settings
    from famulus_server.wiring.server import RunningServer


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[RunningServer, StopSignals]]:
    """A server that accepts calls; leaving drains it. A signal while it starts ends it with Stopped.

    Raises what `open_server` does.
    """
    from famulus_server.wiring.server import open_server  # here, because it imports everything

    with StopSignals() as signals:
        async with contextlib.AsyncExitStack() as stack:
            with signals.interrupting():
                server = await stack.enter_async_context(open_server(settings, progress=note))
            _spare_collector(server)
            yield server, signals


def _spare_collector(server: RunningServer) -> None:
    """What has been imported stays until the end. The garbage collector would look through it again and again, for
    0.1 s each time, in which no event goes out."""

    def spare(_: object = None) -> None:
        gc.collect()
        gc.freeze()

    if server.warming is None:
        spare()
    else:
        server.warming.add_done_callback(spare)
