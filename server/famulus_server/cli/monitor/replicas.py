"""Which replicas there are, and what they say, each time somebody looks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from famulus_server.cli.monitor.change import Change
from famulus_server.cli.monitor.figures import Fleet, Replica, of_fleet, of_replica
from famulus_server.telemetry.scrape import Scrape, Unreachable, scrape

if TYPE_CHECKING:
    from httpx2 import AsyncClient

PORT = 9464


@dataclass(frozen=True, kw_only=True)
class View:
    """All that is shown."""

    fleet: Fleet
    replicas: Sequence[Replica]


class Replicas:
    """Reads the metrics of replicas: of those at `addresses`, and of all that `names` stand for at that moment."""

    def __init__(self, *, addresses: Sequence[str], names: Sequence[str], timeout: float) -> None:
        """Both are `host`, `host:port` or URLs; replicas have `timeout` seconds for an answer."""
        self._addresses = addresses
        self._names = names
        self._timeout = timeout
        self._last: dict[str, Scrape] = {}

    async def look(self) -> View:
        """How it is now; what is a rate, since the last time."""
        import httpx2  # here, because `--help` needs no network

        urls, problems = await self._find()
        # Replicas are asked directly: a proxy that the environment names could not tell one from the other.
        async with httpx2.AsyncClient(timeout=self._timeout, trust_env=False) as client:
            told = await asyncio.gather(*(self._ask(client, url) for url in urls))
        scrapes = {url: one for url, one in zip(urls, told, strict=True) if isinstance(one, Scrape)}
        changes = {url: Change(self._last[url], after) for url, after in scrapes.items() if url in self._last}
        replicas = [
            of_replica(_shown(url), one, changes.get(url))
            if isinstance(one, Scrape)
            else Replica(name=_shown(url), problem=one)
            for url, one in zip(urls, told, strict=True)
        ]
        # One that was away for a while goes on from where it was: counters do not forget.
        self._last |= scrapes
        fleet = of_fleet(len(urls) + len(problems), list(scrapes.values()), list(changes.values()))
        return View(fleet=fleet, replicas=[*replicas, *problems])

    async def _ask(self, client: AsyncClient, url: str) -> Scrape | str:
        try:
            async with asyncio.timeout(self._timeout):
                return await scrape(client, url)
        except Unreachable as problem:
            return str(problem)
        except TimeoutError:
            return "no answer in time"

    async def _find(self) -> tuple[list[str], list[Replica]]:
        """The URLs to read from, each once, and names that nobody knows."""
        urls = [metrics_url(address) for address in self._addresses]
        problems = []
        for name in self._names:
            try:
                urls += await _resolve(name)
            except OSError:
                problems.append(Replica(name=name, problem="nobody knows this name"))
        return list(dict.fromkeys(urls)), problems


def metrics_url(address: str) -> str:
    """Where a replica gives its metrics, of which only a part may be said. Raises ValueError for what is no address."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if not parts.hostname or parts.scheme not in {"http", "https"}:
        raise ValueError(f"{address!r} is no address: write host, host:port or http://host:port/metrics")
    port = parts.port or (PORT if parts.scheme == "http" else 443)
    return f"{parts.scheme}://{_host(parts.hostname)}:{port}{parts.path if len(parts.path) > 1 else '/metrics'}"


async def _resolve(name: str) -> list[str]:
    """The URL of each replica behind a name, such as that of a headless Service. Raises OSError."""
    parts = urlsplit(metrics_url(name))
    found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    hosts = {str(where[0]) for *_, where in found}
    return [f"{parts.scheme}://{_host(host)}:{parts.port}{parts.path}" for host in sorted(hosts)]


def _host(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _shown(url: str) -> str:
    return urlsplit(url).netloc
