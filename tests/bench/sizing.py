"""What a server needs, for docs/sizing.md: on PostgreSQL and Valkey, with the scripted upstream, one client here.

Prints a table, and as its last line one line of JSON. Memory and counts mean something on any machine, times on this
one. Takes a few minutes.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import grpc
import psutil
from redis.asyncio import Redis

from bench.processes import famulus
from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.assistant_service_pb2 import EnsureAssistantRequest
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_service_pb2 import CreateRunRequest, StreamRunRequest, WatchRunRequest
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_pb2 import Thread
from famulus_server.embedded.valkey import EmbeddedValkey
from postgres import EVERYBODY, PostgresServer, execute

_SCRIPT = """
[[scene]]
match = { user_contains = "hold" }
deltas = 100
hold_after = 50

[[scene]]
match = { user_contains = "many" }
deltas = 500

[[scene]]
match = { user_contains = "paced" }
deltas = 100
pace_ms = 40

[[scene]]
match = { user_contains = "typical" }
deltas = 100

[[scene]]
text = "one"
"""
_TYPICAL = "typical: " + "as it was said before " * 11
_THREADS, _RUNS_OF_EACH = 200, 5
_SINGLES, _LONG, _COUNTED = 400, 40, 100
_PACED_AT_A_TIME, _PACED_ROUNDS = 50, 3
_HELD, _WATCHES, _WATCHES_OF_A_CONNECTION = 200, 1_000, 100
_IDLE_SECONDS = 10.0
_AT_A_TIME = 16
_MIB, _KIB = 1024 * 1024, 1024


async def main() -> None:
    """Measures, and prints what came out."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, PostgresServer() as postgres:
        folder = Path(name)
        (folder / "script.toml").write_text(_SCRIPT)
        valkey = EmbeddedValkey(data_dir=folder)
        redis_url = await valkey.start()
        async with (
            famulus(
                "fake-upstream", "--script", str(folder / "script.toml"), "--port", "0", log=folder / "upstream.log"
            ) as upstream,
            Redis.from_url(redis_url) as redis,
        ):
            place = _Place(folder, upstream.address, postgres, redis_url, redis)
            for role in ("api", "worker", "all"):
                async with place.server(role) as site:
                    figures |= await site.idle(role)
            for measure in (_Site.typical, _Site.paced, _Site.short_and_long, _Site.active, _Site.watched):
                async with place.server("all") as site:
                    figures |= await measure(site)
            # Connections of servers that start later are told to be logged.
            execute(postgres.url(user="postgres"), "ALTER ROLE famulus SET log_statement = 'all'")
            async with place.server("all") as site:
                figures |= await site.statements()
        await valkey.close()
    for figure, value in figures.items():
        print(f"{figure:32}{value:14,.2f}")
    print(json.dumps({figure: round(value, 3) for figure, value in figures.items()}))


class _Place:
    """What all servers that are measured have in common. Each gets a new database and an empty Valkey."""

    def __init__(self, folder: Path, upstream: str, postgres: PostgresServer, redis_url: str, redis: Redis) -> None:
        self._folder = folder
        self._upstream = upstream
        self._postgres = postgres
        self._redis_url = redis_url
        self._redis = redis

    @contextlib.asynccontextmanager
    async def server(self, role: str) -> AsyncIterator["_Site"]:
        url = self._postgres.create_database()
        await self._redis.flushall()
        config = self._folder / "famulus.toml"
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\nrole = "{role}"\ndata_dir = "{self._folder}/data"\n'
            f'[metrics]\nlisten = "127.0.0.1:0"\n[store]\nurl = "{url}"\n[redis]\nurl = "{self._redis_url}"\n'
            f'[log]\nlevel = "warning"\n'
            f'[[models]]\nname = "bench"\nbackend = "responses"\nbase_url = "{self._upstream}"\n'
        )
        async with (
            famulus("--config", str(config), "serve", log=self._folder / "server.log") as program,
            grpc.aio.insecure_channel(program.address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
        ):
            database = await asyncpg.connect(url, server_settings=EVERYBODY)
            site = _Site(program.process, program.address, channel, self._postgres, database, self._redis)
            if role != "worker":
                await site.prepare()
            yield site
            await database.close()


class _Site:
    """A server, and what it uses."""

    def __init__(
        self,
        process: psutil.Process,
        address: str,
        channel: grpc.aio.Channel,
        postgres: PostgresServer,
        database: "asyncpg.Connection[asyncpg.Record]",
        redis: Redis,
    ) -> None:
        self._process = process
        self._address = address
        self._channel = channel
        self._runs = RunServiceStub(channel)
        self._postgres = postgres
        self._database = database
        self._redis = redis
        self._assistant_id = ""

    async def prepare(self) -> None:
        """Makes the assistant, and warms everything up."""
        wanted = EnsureAssistantRequest(assistant=Assistant(name="bench", model="bench"))
        self._assistant_id = (await AssistantServiceStub(self._channel).EnsureAssistant(wanted)).assistant.id

    async def idle(self, role: str) -> dict[str, float]:
        """Memory, CPU and connections of a server that has nothing to do."""
        # What it loads when it has started is not the rest that is measured.
        await asyncio.sleep(_IDLE_SECONDS)
        before = self._cpu()
        await asyncio.sleep(_IDLE_SECONDS)
        return {
            f"idle_{role}_mib": self._process.memory_info().rss / _MIB,
            f"idle_{role}_cpu_percent": (self._cpu() - before) / _IDLE_SECONDS * 100,
            f"idle_{role}_pg_connections": await self._connections(),
            # One is ours.
            f"idle_{role}_redis_connections": (await self._redis.info("clients"))["connected_clients"] - 1,
        }

    async def typical(self) -> dict[str, float]:
        """Threads of five runs, each a message of 250 characters and an answer of 100 deltas."""
        runs = _THREADS * _RUNS_OF_EACH
        gate = asyncio.Semaphore(_AT_A_TIME)
        before, size, start = await self._counters(), await self._size(), time.perf_counter()

        async def talk() -> None:
            async with gate:
                thread_id = ""
                for _ in range(_RUNS_OF_EACH):
                    thread_id = await self._run(_TYPICAL, thread_id)

        await asyncio.gather(*(talk() for _ in range(_THREADS)))
        seconds, after = time.perf_counter() - start, await self._counters()
        spent = {name: (after[name] - before[name]) / runs for name in before}
        rows = await self._rows()
        return {
            "typical_runs_per_s": runs / seconds,
            "typical_cpu_ms": spent["cpu"] * 1e3,
            "typical_pg_cpu_ms": spent["pg_cpu"] * 1e3,
            "typical_redis_cpu_ms": spent["redis_cpu"] * 1e3,
            "typical_pg_commits": spent["commits"],
            "typical_wal_kib": spent["wal"] / _KIB,
            "typical_redis_commands": spent["redis_commands"],
            "typical_redis_in_kib": spent["redis_in"] / _KIB,
            "typical_redis_kept_kib": spent["redis_memory"] / _KIB,
            "typical_mib_per_1000": ((await self._size()) - size) / runs * 1_000 / _MIB,
            "typical_rows_per_1000": sum(rows.values()) / runs * 1_000,
            **{f"typical_rows_{name}": count / runs * 1_000 for name, count in rows.items() if count > runs / 10},
            "typical_pg_connections": await self._connections(),
            "typical_after_mib": self._process.memory_info().rss / _MIB,
        }

    async def paced(self) -> dict[str, float]:
        """Answers as models give them: 100 deltas each, one every 40 ms, so that each is read, kept and sent alone."""
        await asyncio.gather(*(self._run("one") for _ in range(_AT_A_TIME)))
        before = await self._counters()
        for _ in range(_PACED_ROUNDS):
            await asyncio.gather(*(self._run("paced") for _ in range(_PACED_AT_A_TIME)))
        after, runs = await self._counters(), _PACED_AT_A_TIME * _PACED_ROUNDS
        return {
            "paced_cpu_ms": (after["cpu"] - before["cpu"]) / runs * 1e3,
            "paced_redis_cpu_ms": (after["redis_cpu"] - before["redis_cpu"]) / runs * 1e3,
        }

    async def short_and_long(self) -> dict[str, float]:
        """What a run costs, and what each of its events."""
        short = await self._cpu_of("one", _SINGLES)
        many = await self._cpu_of("many", _LONG)
        return {"short_cpu_ms": short * 1e3, "long_cpu_ms": many * 1e3, "event_cpu_us": (many - short) / 499 * 1e6}

    async def active(self) -> dict[str, float]:
        """Runs under way, each with 50 deltas, that nobody watches."""
        await self._begin(20)
        memory, redis = self._process.memory_info().rss, await self._redis_memory()
        await self._begin(_HELD)
        return {
            "active_run_kib": (self._process.memory_info().rss - memory) / _HELD / _KIB,
            "active_run_redis_kib": (await self._redis_memory() - redis) / _HELD / _KIB,
        }

    async def watched(self) -> dict[str, float]:
        """Streams of a run that stands still."""
        [run_id] = await self._begin(1)
        async with contextlib.AsyncExitStack() as stack:
            await self._watch(stack, run_id, _WATCHES_OF_A_CONNECTION)
            memory, before = self._process.memory_info().rss, self._cpu()
            await self._watch(stack, run_id, _WATCHES)
            opened, taken = self._cpu(), self._process.memory_info().rss
            await asyncio.sleep(_IDLE_SECONDS)
            return {
                "watch_kib": (taken - memory) / _WATCHES / _KIB,
                "watch_open_cpu_us": (opened - before) / _WATCHES * 1e6,
                "watch_1000_idle_cpu_percent": (self._cpu() - opened) / _IDLE_SECONDS * 100,
            }

    async def statements(self) -> dict[str, float]:
        """What PostgreSQL is sent for a short run on a new thread, besides what an idle server sends."""
        await self._cpu_of("one", 20)
        log = self._postgres.folder / "log"
        before = _logged(log)
        await asyncio.sleep(_IDLE_SECONDS)
        idle = (_logged(log) - before) / _IDLE_SECONDS
        before, start = _logged(log), time.perf_counter()
        for _ in range(_COUNTED):
            await self._run("one")
        beside = idle * (time.perf_counter() - start)
        return {"run_statements": (_logged(log) - before - beside) / _COUNTED, "idle_all_statements_per_s": idle}

    async def _cpu_of(self, text: str, runs: int) -> float:
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def one() -> None:
            async with gate:
                await self._run(text)

        await asyncio.gather(*(one() for _ in range(_AT_A_TIME)))
        before = self._cpu()
        await asyncio.gather(*(one() for _ in range(runs)))
        return (self._cpu() - before) / runs

    async def _run(self, text: str, thread_id: str = "") -> str:
        """Streams a run to its end; returns its thread."""
        async for response in self._runs.StreamRun(StreamRunRequest(create=self._wanted(text, thread_id))):
            for event in response.events:
                if event.HasField("run_state_changed"):
                    thread_id = event.run_state_changed.run.thread_id
        return thread_id

    async def _begin(self, runs: int) -> list[str]:
        """Runs that stand still after 50 deltas."""

        async def one() -> str:
            run_id, deltas = "", 0
            call = self._runs.StreamRun(StreamRunRequest(create=self._wanted("hold", "")))
            async for response in call:
                for event in response.events:
                    run_id = run_id or event.run_state_changed.run.id
                    deltas += event.HasField("text_delta")
                if deltas == 50:
                    call.cancel()
                    return run_id
            raise RuntimeError("the run did not stand still")

        begun: list[str] = []
        while len(begun) < runs:
            begun += await asyncio.gather(*(one() for _ in range(min(50, runs - len(begun)))))
        return begun

    async def _watch(self, stack: contextlib.AsyncExitStack, run_id: str, streams: int) -> None:
        """Opens streams, and returns once each has said something; they stay open as long as the stack."""
        for _ in range(streams // _WATCHES_OF_A_CONNECTION):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(self._address, options))
            calls = [
                RunServiceStub(channel).WatchRun(WatchRunRequest(run_id=run_id))
                for _ in range(_WATCHES_OF_A_CONNECTION)
            ]
            for call in calls:
                stack.callback(call.cancel)
            await asyncio.gather(*(call.read() for call in calls))

    def _wanted(self, text: str, thread_id: str) -> CreateRunRequest:
        message = Message(role=MessageRole.MESSAGE_ROLE_USER, content=[MessagePart(text=TextPart(text=text))])
        where = CreateRunRequest(thread_id=thread_id) if thread_id else CreateRunRequest(new_thread=Thread())
        where.MergeFrom(CreateRunRequest(assistant_id=self._assistant_id, additional_messages=[message]))
        return where

    async def _counters(self) -> dict[str, float]:
        """What only grows."""
        redis = await self._redis.info("everything")
        # A connection tells of its transactions a second after them, at the latest.
        await asyncio.sleep(1.5)
        return {
            "cpu": self._cpu(),
            "pg_cpu": sum(map(_cpu_of, [self._postgres.postmaster, *self._postgres.postmaster.children()])),
            "redis_cpu": redis["used_cpu_user"] + redis["used_cpu_sys"],
            "redis_commands": redis["total_commands_processed"],
            "redis_in": redis["total_net_input_bytes"],
            "redis_memory": redis["used_memory"],
            "commits": await self._database.fetchval(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
            ),
            "wal": float(await self._database.fetchval("SELECT pg_current_wal_lsn() - '0/0'")),
        }

    async def _size(self) -> int:
        """Bytes of tables and indexes."""
        return int(
            await self._database.fetchval(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
                "'public'::regnamespace"
            )
        )

    async def _rows(self) -> dict[str, int]:
        names = await self._database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name: await self._database.fetchval(f'SELECT count(*) FROM "{name}"') for (name,) in names}

    async def _connections(self) -> int:
        found = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'famulus' AND datname = current_database()"
        )
        return int(await self._database.fetchval(found))

    async def _redis_memory(self) -> float:
        return float((await self._redis.info("memory"))["used_memory"])

    def _cpu(self) -> float:
        return _cpu_of(self._process)


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _logged(log: Path) -> int:
    """Statements that the log has."""
    lines = log.read_text(errors="replace").splitlines()
    return sum(" execute " in line or " statement: " in line for line in lines)


if __name__ == "__main__":
    asyncio.run(main())
