"""`doctor`: each fault is a real one, and is told with what to do about it."""

import asyncio
import json
import logging
import resource
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog
from aiohttp import web
from click.testing import CliRunner
from msgspec.structs import replace
from redis.asyncio import Redis

from credentials import Authority, Signer, jwks
from famulus_server.cli import main
from famulus_server.config import EncryptionSettings
from famulus_server.embedded.upstream import ScriptedUpstream, default_script
from famulus_server.embedded.upstream.script import Script, parse_script
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.encryption.key_sources import new_key
from famulus_server.store.postgres_schema import upgrade_database
from famulus_server.store.schema import HEAD
from metered import Metered
from postgres import PostgresServer, execute
from serving import ServerThread, settings_in

_NO_METRICS = {"FAMULUS_METRICS_LISTEN": ""}
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
        env = {"FAMULUS_CONFIG": None, "FAMULUS_EMBEDDED_LOCAL_MODEL": "off", **_NO_METRICS, **(environ or {})}
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


async def test_nothing_is_wrong_with_the_defaults(doctor: Doctor) -> None:
    found = await doctor()
    assert found.code == 0
    assert {verdict for verdict, *_ in found.findings.values()} == {"ok"}
    assert "no" in found.seen("database")


async def test_nothing_is_wrong_with_a_server_of_replicas(
    doctor: Doctor, migrated_database: str, redis_url: str, provider: Provider
) -> None:
    text = store(migrated_database) + redis_at(redis_url) + model(provider.url, more="api_key_env = 'BIG_KEY'")
    found = await doctor(text, environ={"BIG_KEY": "sk-right"})
    assert {
        point: found.verdict("database", point) for point in ("", "schema", "role", "latency", "clock")
    } == dict.fromkeys(("", "schema", "role", "latency", "clock"), "ok")
    assert found.seen("database", "schema") == f"{HEAD}, as this version needs it"
    assert "Valkey 9" in found.seen("redis")
    assert found.verdict("redis", "memory policy") == found.verdict("redis", "memory") == "ok"
    assert (
        found.verdict("model big")
        == found.verdict("model big", "backend")
        == found.verdict("model big", "name")
        == "ok"
    )
    assert found.verdict("model big", "clock") == "ok"


async def test_database_whose_server_is_stopped(doctor: Doctor, postgres_server: PostgresServer) -> None:
    url = postgres_server.url().replace(str(postgres_server.folder), "/nowhere")
    found = await doctor(store(url))
    assert found.code == 1
    assert "no PostgreSQL server answers there" in found.seen("database")
    assert found.remedy("database") == "Start the database, or correct [store] url."


async def test_database_with_another_password(doctor: Doctor, postgres_server: PostgresServer) -> None:
    superuser = postgres_server.url(user="postgres")
    execute(superuser, "CREATE ROLE locked LOGIN PASSWORD 'right'")
    try:
        found = await doctor(store(postgres_server.url(user="locked", password="hush-db")))
    finally:
        execute(superuser, "DROP ROLE locked")
    assert found.verdict("database") == "fail"
    assert 'password authentication failed for user "locked"' in found.seen("database")
    assert found.remedy("database").startswith("Correct the password")


async def test_database_that_hangs_holds_up_nothing_else(doctor: Doctor, silent: int) -> None:
    url = f"postgresql://me:hush-db@127.0.0.1:{silent}/db?sslmode=disable"
    found = await doctor(store(url), "--timeout", "0.5")
    assert found.code == 1
    assert found.seen("database") == found.seen("encryption") == "no answer in 0.5 s"
    assert found.verdict("open files") == "ok"


async def test_database_without_schema_and_with_an_old_and_a_newer_one(doctor: Doctor, new_database: str) -> None:
    empty = await doctor(store(new_database))
    assert (empty.code, empty.verdict("database", "schema")) == (0, "warn")
    await upgrade_database(new_database)
    execute(new_database, "UPDATE alembic_version SET version_num = '0009'")
    old = await doctor(store(new_database))
    assert (old.code, old.seen("database", "schema")) == (0, f"0009, and this version needs {HEAD}")
    assert "famulus-server migrate" in old.remedy("database", "schema")
    execute(new_database, "UPDATE alembic_version SET version_num = '9999'")
    newer = await doctor(store(new_database))
    assert (newer.code, newer.verdict("database", "schema")) == (1, "fail")


async def test_database_of_something_else(doctor: Doctor, new_database: str) -> None:
    execute(new_database, "CREATE TABLE recipes (name text)")
    found = await doctor(store(new_database))
    assert "tables of something else" in found.seen("database")
    assert found.remedy("database").startswith("Give famulus a database of its own")


async def test_superuser_is_warned_of_and_so_are_too_few_connections(
    doctor: Doctor, postgres_server: PostgresServer, migrated_database: str
) -> None:
    url = postgres_server.url(urlsplit(migrated_database).path[1:], user="postgres")
    found = await doctor(f"{store(url)}pool = 500\n")
    assert found.code == 0
    assert "does not bind 'postgres'" in found.seen("database", "role")
    assert found.verdict("database", "connections") == "warn"
    assert "room for 0 more" in found.seen("database", "connections")


async def test_sqlite_file_is_looked_through_while_a_server_has_it_open(doctor: Doctor, tmp_path: Path) -> None:
    server = ServerThread(settings_in(tmp_path / "data"))
    running = await asyncio.to_thread(server.start)
    try:
        found = await doctor(f"[server]\nlisten = '{running.address}'\ndata_dir = '{tmp_path}/data'\n")
    finally:
        await asyncio.to_thread(server.stop)
    assert found.code == 0
    assert found.verdict("database", "integrity") == found.verdict("database", "log") == "ok"
    assert found.seen("address listen") == f"{running.address}: a famulus runs there, and is ready"
    assert "valkey.sock: Valkey" in found.seen("redis")


async def test_damaged_sqlite_file(doctor: Doctor, tmp_path: Path) -> None:
    server = ServerThread(settings_in(tmp_path / "data"))
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.stop)
    file = tmp_path / "data" / "famulus.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
    content = bytearray(file.read_bytes())
    content[(root - 1) * page_size : root * page_size] = b"\xff" * page_size
    file.write_bytes(content)
    found = await doctor()
    assert found.verdict("database", "integrity") == "fail"
    assert "restore the file from a backup" in found.remedy("database", "integrity")


async def test_file_that_is_no_database(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "data" / "famulus.db"
    file.parent.mkdir()
    file.write_text("a letter to my aunt, " * 100)
    assert "cannot be read as an SQLite database" in (await doctor()).seen("database")


async def test_redis_where_nobody_listens(doctor: Doctor, unused: int) -> None:
    found = await doctor(redis_at(f"redis://:hush-redis@127.0.0.1:{unused}/0"))
    assert found.code == 1
    assert found.seen("redis") == f"redis://:***@127.0.0.1:{unused}/0: ConnectionError"
    assert found.remedy("redis") == "Start it, or correct [redis] url."


async def test_redis_that_hangs(doctor: Doctor, silent: int) -> None:
    found = await doctor(redis_at(f"redis://127.0.0.1:{silent}/0"))
    assert found.seen("redis") == f"redis://127.0.0.1:{silent}/0: TimeoutError"
    assert "hangs" in found.remedy("redis")


async def test_redis_with_another_password(doctor: Doctor, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.config_set("requirepass", "right")
    wrong = redis_url.replace("unix://", "unix://:hush-redis@")
    for url in (wrong, redis_url):
        found = await doctor(redis_at(url))
        assert (found.code, found.verdict("redis")) == (1, "fail")
        assert "password" in found.remedy("redis")


async def test_redis_that_throws_keys_away_has_no_bound_or_is_full(doctor: Doctor, redis_url: str) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        await client.config_set("maxmemory", 0)
        found = await doctor(redis_at(redis_url))
        assert (found.code, found.verdict("redis", "memory policy"), found.verdict("redis", "memory")) == (
            0,
            "warn",
            "warn",
        )
        assert found.seen("redis", "memory policy") == "allkeys-lru"
        assert "noeviction" in found.remedy("redis", "memory policy")
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", 1)
        assert (await doctor(redis_at(redis_url))).verdict("redis", "memory") == "fail"


async def test_redis_that_is_a_replica(doctor: Doctor, redis_url: str, unused: int) -> None:
    async with Redis.from_url(redis_url) as client:
        await client.replicaof("127.0.0.1", unused)
    found = await doctor(redis_at(redis_url))
    assert found.verdict("redis", "writes") == "fail"


async def test_key_that_the_provider_refuses_is_named_and_never_shown(
    doctor: Doctor, provider: Provider, tmp_path: Path
) -> None:
    found = await doctor(model(provider.url, more="api_key_env = 'BIG_KEY'"), environ={"BIG_KEY": "sk-hush-model"})
    assert found.code == 1
    assert found.seen("model big").endswith("and refuses the key (HTTP 401)")
    assert found.remedy("model big") == "Correct the key in the variable BIG_KEY."
    file = tmp_path / "key"
    file.write_text("sk-hush-model")
    found = await doctor(model(provider.url, more=f"api_key_file = '{file}'"))
    assert found.remedy("model big") == f"Correct the key in the file {file}."
    assert (await doctor(model(provider.url))).remedy("model big").startswith("Give it a key")


async def test_backend_that_the_provider_does_not_have(doctor: Doctor, provider: Provider) -> None:
    found = await doctor(model(provider.url, backend="chat", more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.seen("model big", "backend") == "chat, which it does not have, but responses"
    assert found.remedy("model big", "backend") == 'Say backend = "responses".'


async def test_address_without_its_path_and_a_name_that_is_not_listed(doctor: Doctor, provider: Provider) -> None:
    key = {"K": provider.key}
    found = await doctor(model(provider.url.removesuffix("/v1"), more="api_key_env = 'K'"), environ=key)
    assert found.remedy("model big") == "Correct base_url: most end in /v1, and this one does not."
    found = await doctor(model(provider.url, name="tiny", more="api_key_env = 'K'"), environ=key)
    assert (found.code, found.seen("model tiny", "name")) == (0, "tiny is not among those it lists: big")


@pytest.mark.parametrize(("status", "verdict"), [(429, "warn"), (503, "fail"), (302, "fail")])
async def test_provider_that_does_not_work(doctor: Doctor, provider: Provider, status: int, verdict: str) -> None:
    provider.listing = status
    found = await doctor(model(provider.url, more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.verdict("model big") == verdict
    assert f"(HTTP {status})" in found.seen("model big")


@pytest.mark.parametrize(
    ("date", "said"), [("Mon, 01 Jan 2035 00:00:00 GMT", "ahead of"), ("Mon, 01 Jan 2024 00:00:00 GMT", "behind")]
)
async def test_clock_of_the_provider(doctor: Doctor, provider: Provider, date: str, said: str) -> None:
    provider.date = date
    found = await doctor(model(provider.url, more="api_key_env = 'K'"), environ={"K": provider.key})
    assert found.verdict("model big", "clock") == "warn"
    assert said in found.seen("model big", "clock")


async def test_models_that_are_not_reached_each_for_another_reason(
    doctor: Doctor, unused: int, provider: Provider
) -> None:
    found = await doctor(
        model(f"http://127.0.0.1:{unused}/v1", name="off")
        + model("http://me:hush-db@no-such-host.invalid/v1", name="lost")
        + model(provider.url.replace("http:", "https:"), name="bare")
    )
    assert found.seen("model off") == f"http://127.0.0.1:{unused}/v1: nobody listens there"
    assert found.seen("model lost") == "http://***@no-such-host.invalid/v1: the name of its host is not known"
    assert "TLS" in found.seen("model bare")


async def test_model_is_asked_for_a_word_only_where_that_is_wanted(doctor: Doctor) -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        text = model(upstream.base_url, name="scripted", more="[embedded]\nscripted_model = 'off'")
        looked = await doctor(text)
        assert ("model scripted", "answer") not in looked.findings
        assert {one.path for one in upstream.requests if one.method == "POST" and one.scene} == set()
        asked = await doctor(text, "--ask")
        assert asked.verdict("model scripted", "answer") == "ok"
        assert "tokens used" in asked.seen("model scripted", "answer")
        upstream.replace(load_failing())
        assert "HTTP 400" in (await doctor(text, "--ask")).seen("model scripted", "answer")


def load_failing() -> Script:
    return parse_script(b"[[scene]]\nfault = { kind = 'status', status = 400 }\n", source="the test", syntax="toml")


async def test_certificate_that_runs_out_soon_and_a_key_that_others_may_read(doctor: Doctor, tmp_path: Path) -> None:
    cert_file, key_file = Authority().server().write(tmp_path, "server")
    await asyncio.to_thread(Path(key_file).chmod, 0o644)
    found = await doctor(f"[tls]\ncert_file = '{cert_file}'\nkey_file = '{key_file}'\n")
    assert (found.verdict("certificate"), found.verdict("certificate", "key")) == ("warn", "warn")
    assert "0 days from now" in found.seen("certificate")
    assert found.remedy("certificate", "key") == f"chmod 600 {key_file}"


async def test_certificate_that_has_run_out(doctor: Doctor, tmp_path: Path) -> None:
    cert_file, key_file = Authority().client(seconds=-60).write(tmp_path, "server")
    found = await doctor(f"[tls]\ncert_file = '{cert_file}'\nkey_file = '{key_file}'\n")
    assert (found.code, found.verdict("certificate")) == (1, "fail")
    assert "ran out on" in found.seen("certificate")


async def test_issuer_whose_keys_can_be_had(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(jwks(Signer.new("one"), Signer.new("two")))
    found = await doctor(f"[[auth.issuers]]\nissuer = 'i'\naudience = 'a'\njwks_file = '{file}'\n")
    assert (found.verdict("issuer i"), found.seen("issuer i")) == ("ok", f"{file}: 2 keys")


async def test_command_for_the_key_that_hangs_holds_up_nothing_else(doctor: Doctor) -> None:
    found = await doctor("[encryption]\nkey_command = ['sleep', '2']\n", "--timeout", "0.5")
    assert found.seen("encryption") == "no answer in 0.5 s"
    assert found.verdict("database") == "ok"


async def test_issuer_whose_keys_cannot_be_had(doctor: Doctor, unused: int) -> None:
    url = f"http://127.0.0.1:{unused}/keys.json"
    found = await doctor(f"[[auth.issuers]]\nissuer = 'i'\naudience = 'a'\njwks_url = '{url}'\n")
    assert found.seen("issuer i") == f"{url}: no answer (ConnectError)"


async def test_address_that_something_else_has(doctor: Doctor, tmp_path: Path) -> None:
    async with ScriptedUpstream(script=default_script()) as upstream:
        address = urlsplit(upstream.base_url).netloc
        found = await doctor(f"[server]\nlisten = '{address}'\ndata_dir = '{tmp_path}/data'\n")
    assert found.seen("address listen") == f"{address} is in use, by something that answers no health checks"


async def test_address_for_metrics_is_free_or_a_famulus_has_it_or_something_else(doctor: Doctor, silent: int) -> None:
    with Metered().served() as address:
        there = await doctor(environ={"FAMULUS_METRICS_LISTEN": address})
    assert there.seen("address metrics") == f"{address}: a famulus with the role all gives its metrics there"
    assert "is free" in (await doctor(environ={"FAMULUS_METRICS_LISTEN": address})).seen("address metrics")
    taken = await doctor(environ={"FAMULUS_METRICS_LISTEN": f"127.0.0.1:{silent}"})
    assert (taken.code, taken.verdict("address metrics")) == (1, "fail")
    assert "gives no metrics (no answer in time)" in taken.seen("address metrics")


async def test_too_few_open_files(doctor: Doctor) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = await doctor()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.verdict("open files") == "warn"
    assert found.seen("open files").startswith("512 are allowed from here")


async def test_files_that_others_may_read(doctor: Doctor, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    found = await doctor()
    assert found.remedy("files") == f"chmod 700 {folder}"


async def test_key_of_encryption_that_the_database_does_not_need_but_another_one(
    doctor: Doctor, tmp_path: Path
) -> None:
    settings = settings_in(tmp_path / "data")
    right, wrong = tmp_path / "right.key", tmp_path / "wrong.key"
    for file in (right, wrong):
        file.write_text(new_key())
        file.chmod(0o600)
    server = ServerThread(replace(settings, encryption=EncryptionSettings(key_file=str(right))))
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.stop)
    assert (await doctor(f"[encryption]\nkey_file = '{right}'\n")).verdict("encryption", "keys in use") == "ok"
    found = await doctor(f"[encryption]\nkey_file = '{wrong}'\n")
    assert found.verdict("encryption", "keys in use") == "fail"
    assert (await doctor()).verdict("encryption", "keys in use") == "fail"
    wrong.unlink()
    assert (await doctor(f"[encryption]\nkey_file = '{wrong}'\n")).verdict("encryption", "keys") == "fail"


async def test_settings_that_cannot_be_read_are_the_only_finding(doctor: Doctor) -> None:
    found = await doctor("[sever]\n")
    assert (found.code, len(found.findings)) == (1, 1)
    assert "unknown section" in found.seen("settings")


async def test_settings_that_no_server_starts_with_do_not_keep_the_rest_from_being_looked_at(doctor: Doctor) -> None:
    found = await doctor("[redis]\nurl = 'redis://far.example'\n", environ={"FAMULUS_SERVER_ROLE": "worker"})
    assert "SQLite serves one process" in found.seen("settings")
    assert found.verdict("database") == "ok"


def test_text_has_a_line_for_each_finding_and_one_for_each_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    env = {
        "FAMULUS_CONFIG": None,
        "FAMULUS_SERVER_DATA_DIR": str(folder),
        "FAMULUS_SERVER_LISTEN": "127.0.0.1:0",
        **_NO_METRICS,
        "FAMULUS_EMBEDDED_LOCAL_MODEL": "off",
    }
    shown = CliRunner(env=env).invoke(main, ["doctor"])
    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    at = lines.index(f"WARN  files: others than its owner may read {folder}")
    assert lines[at + 1] == f"      -> chmod 700 {folder}"
    assert lines[-1].endswith(" ok, 1 warn, 0 fail")
