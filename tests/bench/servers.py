"""famulus with everything on: who calls is asked, all limits and budgets are looked at, costs are counted, and store,
event log, audit, log and metrics are kept."""

import contextlib
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import Program, famulus
from famulus_server.identity.settings import KEY_PREFIX, hash_of_key

KEY = KEY_PREFIX + secrets.token_urlsafe(32)
MODEL = "bench"
TOOL_MODEL = "bench-tools"
PACED_MODEL = "bench-paced"
CONTEXT_WINDOW = 8_192
# Never reached: a refusal would cost less.
_PLENTY = "{ requests_per_minute = 1_000_000_000, tokens_per_minute = 1_000_000_000, concurrent_runs = 1_000_000_000 }"
_CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = {folder}
[store]
url = {database}
[redis]
url = {redis}
[log]
level = "info"
format = "json"
[metrics]
listen = "127.0.0.1:0"
[[auth.keys]]
name = "bench"
tenant = "bench"
roles = ["operator"]
sha256 = "{sha256}"
[tiers.default]
limits.tenant = {plenty}
limits.user = {plenty}
limits.assistant = {plenty}
limits.tenant_model = {plenty}
budgets.tenant = {{ amount = 1_000_000_000 }}
budgets.user = {{ amount = 1_000_000_000, period = "day" }}
"""
_MODEL = """
[[models]]
name = "{name}"
backend = "responses"
base_url = {upstream}
context_window = {window}
limits = {plenty}
price = {{ input = 1.0, cached_input = 0.1, output = 2.0 }}
"""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a server depends on. Without a database and Redis it brings its own."""

    upstream: str
    paced: str
    database: str = ""
    redis: str = ""


@contextlib.asynccontextmanager
async def server(folder: Path, around: Surroundings) -> AsyncIterator[Program]:
    """A server that keeps what it has in the folder, and its log beside that."""
    config = _config(folder, around)
    async with famulus("--config", str(config), "serve", log=folder / "log") as program:
        yield program


def _config(folder: Path, around: Surroundings) -> Path:
    folder.mkdir()
    config = folder / "famulus.toml"
    config.write_text(_settings(folder / "data", around))
    return config


def _settings(data: Path, around: Surroundings) -> str:
    said = {"folder": str(data), "database": around.database, "redis": around.redis}
    quoted = {name: json.dumps(text) for name, text in said.items()}
    text = _CONFIG.format(**quoted, sha256=hash_of_key(KEY), plenty=_PLENTY)
    for name, upstream in ((MODEL, around.upstream), (TOOL_MODEL, around.upstream), (PACED_MODEL, around.paced)):
        text += _MODEL.format(name=name, upstream=json.dumps(upstream), window=CONTEXT_WINDOW, plenty=_PLENTY)
    return text
