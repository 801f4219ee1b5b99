"""This machine: open files, who may read what, and the addresses to listen on."""

from __future__ import annotations

import asyncio
import resource
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from famulus_server.cli.diagnosis.findings import Finding, fail, ok, warn
from famulus_server.cli.options import address_to_call

if TYPE_CHECKING:
    from famulus_server.config import Settings

# Of a server that does nothing: libraries, logs, listening sockets, Redis.
_ALWAYS_OPEN = 64
# Connections of callers, on each of which a hundred streams may be open.
_CALLERS = 512
_ANSWER_SECONDS = 2.0


async def check_open_files(settings: Settings) -> Sequence[Finding]:
    """Of a process that is started as this one was."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _ALWAYS_OPEN + settings.worker.slots + settings.store.pool
    left = limit - needed
    seen = f"{limit:,} are allowed from here; all slots at work take {needed:,}, which leaves {left:,} for callers"
    if limit == resource.RLIM_INFINITY or left >= _CALLERS:
        return [ok("", seen if limit != resource.RLIM_INFINITY else "as many as there may be")]
    remedy = f"Raise it where the server is started: `ulimit -n {needed + 4 * _CALLERS}`, or LimitNOFILE of systemd."
    return [fail("", seen, remedy) if left <= 0 else warn("", seen, remedy)]


async def check_files(settings: Settings) -> Sequence[Finding]:
    """That conversations and keys are nobody else's to read."""
    return await asyncio.to_thread(lambda: list(_exposed(settings)) or [ok("", "nobody else may read them")])


async def check_address(settings: Settings, key: str, address: str) -> Sequence[Finding]:
    """That it is free, or a famulus answers there. `key` is the setting of [server] that names it."""
    return [await _free(f"[server] {key}", address) or await _who_answers(settings, key, address)]


async def check_metrics_address(address: str) -> Sequence[Finding]:
    """That it is free, or a famulus gives its metrics there."""
    return [await _free("[metrics] listen", address) or await _who_measures(address)]


async def _free(key: str, address: str) -> Finding | None:
    """None: it is in use."""
    from famulus_server.api.addresses import ListenError, check_free

    try:
        await asyncio.to_thread(check_free, address)
    except ListenError:
        return None
    except OSError as error:
        return fail("", f"{address}: {error.strerror}", f"Correct {key}: this machine has no such address.")
    return ok("", f"{address} is free: no server runs there now")


async def _who_measures(address: str) -> Finding:
    import httpx2

    from famulus_server.telemetry.scrape import Unreachable, scrape

    try:
        async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            seen = await scrape(client, f"http://{address_to_call(address)}/metrics")
    except Unreachable as unreachable:
        remedy = "Stop whatever has it, or choose another address for [metrics] listen."
        return fail("", f"{address} is in use, by something that gives no metrics ({unreachable})", remedy)
    role = seen.label("famulus_build_info", "role")
    return ok("", f"{address}: a famulus with the role {role} gives its metrics there")


def _exposed(settings: Settings) -> Iterator[Finding]:
    from famulus_server.encryption.key_sources import is_exposed

    for path in (settings.data_dir, settings.database):
        # A file is as private as the folder that it is in.
        if is_exposed(path) and not (path.is_file() and _is_private(path.parent)):
            mode = "700" if path.is_dir() else "600"
            yield warn("", f"others than its owner may read {path}", f"chmod {mode} {path}")


def _is_private(folder: Path) -> bool:
    return not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)


async def _who_answers(settings: Settings, key: str, address: str) -> Finding:
    if key == "listen" and settings.tls.cert_file:
        return ok("", f"{address} is in use; over TLS, `famulus-server healthcheck --ca-file` asks who it is")
    status = await _health(address_to_call(address))
    if status is None:
        remedy = f"Stop whatever has it, or choose another address for [server] {key}."
        return fail("", f"{address} is in use, by something that answers no health checks", remedy)
    if status == "SERVING":
        return ok("", f"{address}: a famulus runs there, and is ready")
    return warn("", f"{address}: a famulus runs there, and is not ready ({status})", "Its log says why.")


async def _health(target: str) -> str | None:
    """The readiness of the server there; None where none answers."""
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from famulus.channels import channel_options

    async with grpc.aio.insecure_channel(target, channel_options(target)) as channel:
        try:
            answer = await HealthStub(channel).Check(HealthCheckRequest(service="readiness"), timeout=_ANSWER_SECONDS)
        except grpc.aio.AioRpcError:
            return None
    return str(HealthCheckResponse.ServingStatus.Name(answer.status))
