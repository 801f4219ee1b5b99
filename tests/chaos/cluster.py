"""Three replicas on one PostgreSQL, one Valkey and one scripted upstream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from chaos.journal import Journal
from chaos.mutations import MUTATIONS
from chaos.processes import Replica, Valkey
from chaos.script import write_script
from famulus_server.embedded.upstream import ScriptedUpstream
from postgres import PostgresServer

REPLICAS = 3
LEASE_SECONDS = 2.0
# Fewer than there are runs at busy moments, so that runs also wait, and are claimed by whoever has a slot.
_SLOTS = 5
_CONFIG = """
[server]
listen = {address}
data_dir = {folder}
drain_seconds = 2.0
heartbeat_seconds = 1.0
[store]
url = {database}
[redis]
url = {redis}
[worker]
lease_seconds = {lease}
slots = {slots}
[metrics]
listen = "127.0.0.1:0"
[log]
level = "info"
format = "json"
[[models]]
name = "scripted"
backend = "responses"
base_url = {upstream}
first_event_timeout = 5.0
idle_timeout = 5.0
retry = {{ base_delay = 0.05, max_delay = 0.2, budget = 1.0, reserve = 1000 }}
breaker = {{ min_calls = 1000000 }}
"""


@dataclass(frozen=True)
class Cluster:
    """Everything that runs. `database` is the URL of the trial's own database."""

    postgres: PostgresServer
    database: str
    valkey: Valkey
    upstream: ScriptedUpstream
    replicas: list[Replica]

    @property
    def healthy(self) -> list[Replica]:
        """The replicas that nothing is being done to."""
        return [replica for replica in self.replicas if replica.healthy]


@contextlib.asynccontextmanager
async def open_cluster(
    folder: Path, *, postgres: PostgresServer, seed: int, journal: Journal, mutation: str = ""
) -> AsyncIterator[Cluster]:
    """Starts everything; in the end nothing of it is left but the logs in the folder."""
    async with contextlib.AsyncExitStack() as stack:
        database = await asyncio.to_thread(postgres.create_database)
        valkey = Valkey(folder)
        await valkey.start()
        stack.push_async_callback(valkey.close)
        upstream = await stack.enter_async_context(ScriptedUpstream(script=write_script(seed), history=1_000_000))
        replicas = []
        for number in range(REPLICAS):
            replica = Replica(number=number, folder=folder, mutation=mutation, journal=journal)
            settings = {
                "address": replica.address,
                "folder": str(folder / f"data-{number}"),
                "database": database,
                "redis": valkey.url,
                "upstream": upstream.base_url,
            }
            quoted = {name: json.dumps(value) for name, value in settings.items()}
            replica.config.write_text(_CONFIG.format(lease=LEASE_SECONDS, slots=_SLOTS, **quoted))
            stack.push_async_callback(replica.close)
            replicas.append(replica)
        # All at once: they also migrate the empty database at once.
        await asyncio.gather(*(replica.start() for replica in replicas))
        if mutation:
            await MUTATIONS[mutation].prepare(database)
        yield Cluster(postgres, database, valkey, upstream, replicas)
