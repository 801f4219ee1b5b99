"""A server that is examined, by its settings."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from click.testing import CliRunner

from famulus_server.cli import main
from famulus_server.embedded.valkey import EmbeddedValkey

NO_METRICS = {"FAMULUS_METRICS_LISTEN": ""}
SECRETS = {"hush-db", "hush-redis", "sk-hush-model"}


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Doctor, like every command, decides what the whole process logs."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@dataclass(frozen=True)
class Seen:
    """What doctor said, by check and point."""

    code: int
    output: str
    findings: dict[tuple[str, str], tuple[str, str, str]]

    def verdict(self, check: str, point: str = "") -> str:
        return self.findings[check, point][0]

    def seen(self, check: str, point: str = "") -> str:
        return self.findings[check, point][1]

    def remedy(self, check: str, point: str = "") -> str:
        return self.findings[check, point][2]


Doctor = Callable[..., Any]


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    """Examines a server with these settings, whose files are in a folder of the test. Nothing secret is ever shown."""

    async def examine(text: str = "", *options: str, environ: dict[str, str] | None = None) -> Seen:
        file = tmp_path / "famulus.toml"
        sections = "" if "[server]" in text else f"[server]\nlisten = '127.0.0.1:0'\ndata_dir = '{tmp_path}/data'\n"
        file.write_text(sections + text)
        env = {"FAMULUS_CONFIG": None, "FAMULUS_EMBEDDED_LOCAL_MODEL": "off", **NO_METRICS, **(environ or {})}
        arguments = ["doctor", "--config", str(file), "--json", *options]
        result = await asyncio.to_thread(CliRunner(env=env).invoke, main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert not [secret for secret in SECRETS if secret in result.output]
        told = json.loads(result.stdout)
        assert told["ok"] == (result.exit_code == 0)
        for one in told["findings"]:
            assert one.keys() == {"check", "point", "verdict", "seen", "remedy"}
            assert one["seen"]
            assert bool(one["remedy"]) == (one["verdict"] in {"warn", "fail"})
        findings = {
            (one["check"], one["point"]): (one["verdict"], one["seen"], one["remedy"]) for one in told["findings"]
        }
        return Seen(result.exit_code, result.output, findings)

    return examine


@dataclass
class Provider:
    """A provider of models that knows who may ask, and has the routes that it is told to have."""

    key: str = "sk-right"
    routes: tuple[str, ...] = ("/v1/responses",)
    listing: int = 200
    date: str = ""
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        headers = {"date": self.date} if self.date else {}
        if request.headers.get("authorization") != f"Bearer {self.key}":
            said = {"error": {"message": f"no such key: {request.headers.get('authorization')}"}}
            return web.json_response(said, status=401, headers=headers)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "big"}]}, status=self.listing, headers=headers)
        return web.json_response({}, status=400 if request.path in self.routes else 404, headers=headers)


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


@pytest.fixture
async def redis_url(tmp_path: Path) -> AsyncIterator[str]:
    valkey = EmbeddedValkey(data_dir=tmp_path / "redis")
    yield await valkey.start()
    await valkey.close()


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield server.getsockname()[1]


@pytest.fixture
def unused() -> Iterator[int]:
    """A port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def model(url: str, *, name: str = "big", backend: str = "responses", more: str = "") -> str:
    return f"[[models]]\nname = '{name}'\nbackend = '{backend}'\nbase_url = '{url}'\n{more}\n"


def store(url: str) -> str:
    return f"[store]\nurl = '{url}'\n"


def redis_at(url: str) -> str:
    return f"[redis]\nurl = '{url}'\n"
