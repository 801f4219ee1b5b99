"""The systems that are compared: started when they are first asked for, stopped in the end."""

import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import openai
import psutil

from bench.accounting import Parts
from bench.asking import Direct, Proxy, Runs, connected, connected_bare
from bench.load import System
from bench.plan import Plan
from bench.processes import Program, famulus, module, script
from bench.servers import MODEL, Surroundings, server

_SCRIPT = """
[[scene]]
match = {{ user_contains = "many" }}
deltas = {deltas}

[[scene]]
match = {{ model = "bench-tools" }}
tool_calls = [{{ name = "wait", arguments = {{}} }}]

[[scene]]
text = "one"
"""
_PROXY_SCRIPT = Path(__file__).with_name("litellm_proxy.py")
# LiteLLM closes connections that were idle for 5 seconds, and a request that meets that is lost.
_REUSE_SECONDS = 2.0
OURS = ("server", "Valkey", "PostgreSQL")
"""The parts of famulus that are its cost."""


class Stage:
    """What there is to measure. `around` is what servers depend on."""

    def __init__(self, folder: Path, plan: Plan, stack: contextlib.AsyncExitStack, litellm: Path | None) -> None:
        """`litellm` is the Python of the environment that has LiteLLM."""
        self.folder = folder
        self.plan = plan
        self._stack = stack
        self._litellm = litellm
        self._systems: dict[str, System] = {}
        self._programs: dict[str, Program] = {}
        self._upstream: Program | None = None
        self.around = Surroundings(upstream="", paced="")
        self.missing = ""
        """Why there is no LiteLLM."""

    async def open(self) -> None:
        """Starts the upstreams."""
        played = self.folder / "script.toml"
        played.write_text(_SCRIPT.format(deltas=self.plan.deltas))
        arguments = ("fake-upstream", "--script", str(played), "--port", "0")
        self._upstream = await self._stack.enter_async_context(famulus(*arguments, log=self.folder / "upstream.log"))
        paced = await self._stack.enter_async_context(
            module("bench.paced", str(self.plan.paced_deltas), log=self.folder / "paced.log")
        )
        self._programs["paced"] = paced
        self.around = Surroundings(upstream=self._upstream.address, paced=paced.address)

    def upstream(self) -> dict[str, list[psutil.Process]]:
        """The processes of the scripted upstream."""
        assert self._upstream is not None, "not open"
        return {"upstream": [self._upstream.process]}

    def paced(self) -> dict[str, list[psutil.Process]]:
        """The processes of the paced one."""
        return {"upstream": [self._programs["paced"].process]}

    async def famulus(self, model: str = MODEL) -> System:
        """One embedded server, asked for a model."""
        program = await self.program()
        return await self._once(f"famulus {model}", lambda: self._connect("famulus", program, model))

    async def program(self) -> Program:
        """The process of that server."""
        if "famulus" not in self._programs:
            started = server(self.folder / "famulus", self.around)
            self._programs["famulus"] = await self._stack.enter_async_context(started)
        return self._programs["famulus"]

    async def bare(self) -> System:
        """The bare prototype on the scripted upstream."""
        return await self._once("bare", lambda: self._bare("bare", self.around.upstream))

    async def bare_paced(self) -> System:
        """The bare prototype on the paced one."""
        return await self._once("bare paced", lambda: self._bare("bare", self.around.paced))

    async def direct(self) -> System:
        """No server at all: the SDK in the client."""
        return await self._once("direct", self._direct)

    async def litellm(self) -> System | None:
        """LiteLLM's proxy, or None: then `missing` says why."""
        if self._litellm is None:
            self.missing = "LiteLLM was NOT measured: it is not installed (make .venv-litellm/installed)"
        if self.missing:
            return None
        try:
            return await self._once("LiteLLM", self._proxy)
        except RuntimeError as error:
            self.missing = f"LiteLLM was NOT measured: {error}"
            return None

    def where_bare(self, upstream: str) -> tuple[str, Parts]:
        """Where the prototype on an upstream is, once it was asked for, and its processes."""
        program = self._programs[f"bare {upstream}"]
        return program.address, lambda: {"server": [program.process]}

    async def _once(self, name: str, start: Callable[[], Awaitable[System]]) -> System:
        if name not in self._systems:
            self._systems[name] = await start()
        return self._systems[name]

    async def _connect(self, name: str, program: Program, model: str) -> System:
        runs = await self._stack.enter_async_context(connected(program.address, model))
        return System(name, runs.ask, parts_of(program), OURS)

    async def _bare(self, name: str, upstream: str) -> System:
        program = await self._stack.enter_async_context(module("bench.bare", upstream, log=self.folder / "bare.log"))
        self._programs[f"bare {upstream}"] = program
        runs: Runs = await self._stack.enter_async_context(connected_bare(program.address))
        return System(name, runs.ask_bare, lambda: {"server": [program.process]}, ("server",))

    async def _direct(self) -> System:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        client = openai.AsyncOpenAI(base_url=self.around.upstream, api_key="none", max_retries=0, http_client=http)
        await self._stack.enter_async_context(client)
        return System("direct", Direct(client).ask, dict, ())

    async def _proxy(self) -> System:
        assert self._litellm is not None, "not installed"
        port, key = _free_port(), f"sk-{secrets.token_hex(16)}"
        config = self.folder / "litellm.json"
        model = {"model": f"openai/{MODEL}", "api_base": self.around.upstream, "api_key": "none"}
        config.write_text(
            json.dumps(
                {
                    "model_list": [{"model_name": MODEL, "litellm_params": model}],
                    "general_settings": {"master_key": key},
                }
            )
        )
        offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        started = script(
            self._litellm, _PROXY_SCRIPT, str(config), str(port), log=self.folder / "litellm.log", env=offline
        )
        program = await self._stack.enter_async_context(started)
        session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_REUSE_SECONDS))
        )
        return System(
            "LiteLLM",
            Proxy(session, f"http://127.0.0.1:{port}", key).ask,
            lambda: {"server": [program.process, *program.children]},
            ("server",),
        )


def parts_of(program: Program) -> Parts:
    """An embedded server and the Valkey that it brings."""
    return lambda: {"server": [program.process], "Valkey": program.children}


@contextlib.asynccontextmanager
async def open_stage(folder: Path, plan: Plan, *, litellm: Path | None) -> AsyncIterator[Stage]:
    """Everything that is started keeps its files in the folder."""
    async with contextlib.AsyncExitStack() as stack:
        stage = Stage(folder, plan, stack, litellm)
        await stage.open()
        yield stage


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
