"""Two replicas of the installed command, API and worker, on PostgreSQL, Valkey and a scripted upstream."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from chaos.processes import Valkey
from command import environment
from famulus_server.embedded.upstream import Fault, Match, Scene, Script, ScriptedUpstream, ToolCall
from monitoring.ports import free_port
from run_stage import Stage, stage_on

ROLES = ("api", "worker")
_CONFIG = """
[server]
data_dir = {folder}
drain_seconds = 1.0
[store]
url = {database}
[redis]
url = {redis}
[worker]
slots = 16
[log]
level = "warning"
[prices]
currency = "EUR"
[tiers.default]
limits.user = {{ requests_per_minute = 10 }}
[[routes]]
name = "house"
variants = [{{ model = "large" }}]
fallbacks = ["small"]
[[models]]
name = "large"
backend = "responses"
base_url = {upstream}
price = {{ input = 2.0, cached_input = 0.5, output = 10.0 }}
retry = {{ base_delay = 0.05, max_delay = 0.2, budget = 1.0 }}
breaker = {{ min_calls = 5, open_seconds = 2.0, max_open_seconds = 8.0 }}
[[models]]
name = "small"
backend = "chat"
base_url = {upstream}
price = {{ input = 0.2, output = 1.0 }}
"""
ANSWER = Scene(text="You said: ", echo=True, first_ms=40, pace_ms=15)
# The word is in the question; each flaky one is refused once.
SCENES = (
    Scene(match=Match(tool_outputs=True), text="The tools say: ", quote_outputs=True, first_ms=40),
    Scene(match=Match(user_contains="muddled"), tool_calls=(ToolCall(name="get_time"), ToolCall(name="nonsense"))),
    Scene(match=Match(names_tool=True), call_tools=True, first_ms=40),
    Scene(match=Match(user_contains="impossible"), fault=Fault(kind="status", status=400)),
    Scene(match=Match(user_contains="endless"), text="once upon a time", fault=Fault(kind="hang", after=2)),
    ANSWER,
)
DOWN = Scene(match=Match(model="large"), fault=Fault(kind="status", status=500))
LIMITED = Fault(kind="status", status=429, headers={"retry-after-ms": "50"})


@dataclass(frozen=True)
class World:
    """Everything that runs, and the addresses of its metrics."""

    stage: Stage
    upstream: ScriptedUpstream
    valkey: Valkey
    metrics: tuple[str, ...]

    def work(self) -> None:
        """The models answer."""
        self.upstream.replace(Script(scenes=SCENES))

    def limit(self, times: int) -> None:
        """So many of their next answers are 429."""
        self.upstream.replace(Script(scenes=(Scene(times=times, fault=LIMITED), *SCENES)))

    def fail(self) -> None:
        """The large model is down."""
        self.upstream.replace(Script(scenes=(DOWN, *SCENES)))


@contextlib.asynccontextmanager
async def open_world(folder: Path, database: str) -> AsyncIterator[World]:
    """Starts everything on an empty database; in the end nothing of it is left but what is in the folder."""
    async with contextlib.AsyncExitStack() as stack:
        valkey = Valkey(folder)
        await valkey.start()
        stack.push_async_callback(valkey.close)
        upstream = await stack.enter_async_context(ScriptedUpstream(script=Script(scenes=SCENES)))
        given = {"folder": str(folder), "database": database, "redis": valkey.url, "upstream": upstream.base_url}
        config = folder / "famulus.toml"
        config.write_text(_CONFIG.format(**{name: json.dumps(value) for name, value in given.items()}))
        metrics = tuple(f"127.0.0.1:{free_port()}" for _ in ROLES)
        address = f"127.0.0.1:{free_port()}"
        for role, metered in zip(ROLES, metrics, strict=True):
            listen = address if role == "api" else f"127.0.0.1:{free_port()}"
            await stack.enter_async_context(_replica(config, role, listen, metered))
        stage = await stack.enter_async_context(stage_on(address, upstream))
        yield World(stage, upstream, valkey, metrics)


@contextlib.asynccontextmanager
async def _replica(config: Path, role: str, listen: str, metrics: str) -> AsyncIterator[None]:
    env = environment({"FAMULUS_METRICS_LISTEN": metrics, "PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    command = [sys.executable, "-c", "from famulus_server.cli import main; main()", "--config", str(config), "serve"]
    with (config.parent / f"{role}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--role", role, "--listen", listen, stdout=subprocess.PIPE, stderr=log, env=env
        )
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        assert line.startswith(b"famulus "), (config.parent / f"{role}.log").read_text()
        yield
    finally:
        process.terminate()
        await process.wait()
