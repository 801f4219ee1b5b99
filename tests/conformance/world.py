"""The servers that scenarios run on, and the scripted model behind them."""

import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
import psutil
from google.protobuf.message import Message
from redis.asyncio import Redis

from conformance.scenario import request_of, response_of
from famulus_server.embedded.upstream import ScriptedUpstream
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.engine.policy import Budget, Budgets, CallerQuotas, Policy, Quota, Role, Tier
from famulus_server.identity.settings import AuthSettings, KeySettings, hash_of_key
from famulus_server.wiring.server import open_server
from killable_server import open_killable
from postgres import PostgresServer
from run_stage import stage_settings

TENANTS: Mapping[str, Tier] = {
    "acme": Tier(),
    "other": Tier(),
    "limited": Tier(limits=CallerQuotas(tenant=Quota(requests_per_minute=1))),
    "spent": Tier(budgets=Budgets(tenant=Budget(amount=0.0))),
}
ROLES: Sequence[Role] = ("operator", "writer", "reader")


@dataclass
class Site:
    """One service: the addresses of its replicas, and what a scenario may do to it."""

    addresses: list[str]
    redis_url: str
    token: str = ""
    names: dict[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)

    async def call(self, method: str, fields: Mapping[str, Any], *, token: str = "") -> Message:
        """A unary call by the suite itself."""
        metadata = [("authorization", f"Bearer {token or self.token}")] if token or self.token else None
        async with grpc.aio.insecure_channel(self.addresses[0]) as channel:
            send: grpc.aio.UnaryUnaryMultiCallable[Message, Message] = channel.unary_unary(
                f"/{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=lambda serialized: response_of(method, serialized),
            )
            return await send(request_of(method, fields), metadata=metadata)

    async def flush(self) -> None:
        """Redis loses all it has."""
        async with Redis.from_url(self.redis_url) as client:
            await client.flushall()

    def kill_executor(self, upstream: ScriptedUpstream) -> None:
        """SIGKILL for the replica that talks with the model."""
        port = int(upstream.base_url.rpartition(":")[2].partition("/")[0])
        for process in self.processes:
            if any(_leads_to(each, port) for each in psutil.Process(process.pid).net_connections("tcp")):
                process.kill()
                return
        raise RuntimeError("no replica talks with the model")


class World:
    """Opens sites when a scenario needs them. What one scenario leaves behind on a site is no other's affair."""

    def __init__(
        self, folder: Path, upstream: ScriptedUpstream, redis_url: str, postgres: PostgresServer | None
    ) -> None:
        self.upstream = upstream
        self._folder = folder
        self._redis_url = redis_url
        self._postgres = postgres
        self._stack = AsyncExitStack()
        self._sites: dict[str, Site] = {}
        self._servers: dict[str, AsyncExitStack] = {}
        self._replicas = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, postgres: PostgresServer | None) -> AsyncIterator["World"]:
        valkey = EmbeddedValkey(data_dir=folder)
        async with ScriptedUpstream() as upstream:
            try:
                world = cls(folder, upstream, await valkey.start(), postgres)
                async with world._stack:
                    yield world
            finally:
                await valkey.close()

    @asynccontextmanager
    async def site(self, kind: str) -> AsyncIterator[Site]:
        """The site of this kind. Replicas are new for each scenario, which may kill them."""
        if kind == "replicas":
            async with self._open_replicas() as site:
                yield site
            return
        if kind not in self._sites:
            await self._open(kind)
        yield self._sites[kind]

    async def restart(self, kind: str) -> None:
        """The server forgets what it has in memory. It comes back at another address."""
        await self._servers.pop(kind).aclose()
        await self._open(kind)

    async def _open(self, kind: str) -> None:
        auth = AuthSettings() if kind == "plain" else _auth()
        policy = Policy(tiers={"default": Tier(), **TENANTS}, tenants={name: name for name in TENANTS})
        settings = stage_settings(self._folder / kind, self.upstream.base_url, redis_url=self._redis_url, policy=policy)
        settings = msgspec.structs.replace(settings, auth=auth)
        stack = self._servers[kind] = await self._stack.enter_async_context(AsyncExitStack())
        running = await stack.enter_async_context(open_server(settings, progress=lambda _: None))
        site = self._sites.setdefault(kind, Site([], self._redis_url))
        site.addresses[:] = [running.address]
        if auth.configured:
            site.names = {f"{tenant}_{role}": _key(tenant, role) for tenant in TENANTS for role in ROLES}
            site.token = _key("acme", "operator")

    @asynccontextmanager
    async def _open_replicas(self) -> AsyncIterator[Site]:
        if self._postgres is None:
            raise RuntimeError("there is no PostgreSQL here")
        self._replicas += 1
        shared = {"redis_url": self._redis_url, "database_url": self._postgres.create_database()}
        environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
        async with AsyncExitStack() as stack:
            site = Site([], self._redis_url)
            for number in (1, 2):
                folder = self._folder / f"replica{self._replicas}.{number}"
                stage, process = await stack.enter_async_context(
                    open_killable(folder, self.upstream, environ=environ, **shared)
                )
                site.addresses.append(stage.address)
                site.processes.append(process)
            yield site


def _key(tenant: str, role: Role) -> str:
    """A static key; scenarios know it as `$tenant_role`."""
    return f"fam_{tenant}_{role}"


def _auth() -> AuthSettings:
    return AuthSettings(
        keys=tuple(
            KeySettings(name=f"{tenant}_{role}", tenant=tenant, roles=(role,), sha256=hash_of_key(_key(tenant, role)))
            for tenant in TENANTS
            for role in ROLES
        )
    )


def _leads_to(connection: Any, port: int) -> bool:
    return bool(connection.raddr) and connection.raddr.port == port
