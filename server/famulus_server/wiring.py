"""The only file that knows every concrete class: makes them, opens them in order, and closes them in reverse."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from famulus_server.api.addresses import check_free
from famulus_server.api.audit import Audit
from famulus_server.api.server import Access, ApiServer, Desks
from famulus_server.api.tls import ServerCertificates
from famulus_server.config import SCRIPTED_MODEL, EncryptionSettings, Settings, check, check_models
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.hints import RedisHints
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.embedded.errors import EmbeddedUnavailable
from famulus_server.embedded.local_model import MODEL_NAME, LocalModel
from famulus_server.embedded.supervisor import Child, keep_running
from famulus_server.embedded.valkey import EmbeddedValkey
from famulus_server.embedded.weights import cache_dir, find_weights, pull_weights
from famulus_server.encryption.key_sources import ask_for_key, is_exposed, read_key
from famulus_server.engine.aftermath import Aftermath
from famulus_server.engine.asking import Asking
from famulus_server.engine.assistants import AssistantDesk
from famulus_server.engine.audit import AuditTrail
from famulus_server.engine.clock import SystemClock, TimeOrderedIds
from famulus_server.engine.executor import Executor
from famulus_server.engine.export import Export
from famulus_server.engine.feed import Feed
from famulus_server.engine.follower import Follower
from famulus_server.engine.gate import Gate
from famulus_server.engine.ledger import Ledger
from famulus_server.engine.messages import MessageDesk
from famulus_server.engine.policy import Policies
from famulus_server.engine.pseudonyms import PSEUDONYM_KEY, Pseudonyms
from famulus_server.engine.retention import Sweeper
from famulus_server.engine.routing import Router
from famulus_server.engine.runs import RunDesk
from famulus_server.engine.threads import ThreadDesk
from famulus_server.engine.upkeep import Chore, Upkeep
from famulus_server.engine.usage import UsageDesk
from famulus_server.engine.user_data import UserDataDesk, Wipe
from famulus_server.engine.watch import Watch
from famulus_server.engine.worker import Worker
from famulus_server.identity.authenticator import KnownCallers
from famulus_server.identity.settings import AuthSettings
from famulus_server.models.connection import load_sdk
from famulus_server.models.registry import ModelRegistry
from famulus_server.models.settings import ModelSettings
from famulus_server.ports import Clock, Lease
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.postgres import PostgresStore
from famulus_server.store.sqlite import SqliteStore

# What llama.cpp gives each of the local model's slots.
_LOCAL_CONTEXT = 2_048
_PAGE_KEY = "page-tokens"
# The tenant, which is nobody's, and the scope of the data key that seals what Redis has of conversations.
_REDIS_KEY = (".", "redis")
# Of the worker's own: one to renew leases, one for what else it does.
_WORKER_CONNECTIONS = 2
# Of a command: how many it has, and how long it waits for a statement.
_COMMAND_CONNECTIONS = 2
_COMMAND_SECONDS = 600.0
# After the runs at work have ended or been given back, calls have this long to end.
_CALLS_GRACE_SECONDS = 2.0
# Between two looks for deletions that nobody goes on with.
_RESUME_SECONDS = 5.0

Progress = Callable[[str], None]
AnyStore = SqliteStore | PostgresStore


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts calls. `default_model` is the best model to try it with; what `policies` holds may be
    exchanged, and who may call by `admit`, unless nobody is asked who he is."""

    address: str
    models: tuple[str, ...]
    default_model: str
    scripted_model: str | None
    policies: Policies
    admit: Callable[[AuthSettings], None] | None = None
    health_address: str = ""


@contextlib.asynccontextmanager
async def open_server(settings: Settings, *, progress: Progress) -> AsyncIterator[RunningServer]:
    """Starts everything the settings ask for; leaving drains and stops it all. `progress` is told what takes long, a
    line at a time.

    Raises ConfigError, KeyUnusable, ListenError, ScriptError, EmbeddedUnavailable or StoreUnusable, each with a text
    for the operator; then nothing stays behind.
    """
    check(settings)
    check_free(settings.server.listen)
    check_free(settings.server.health_listen)
    certificates = ServerCertificates(settings.tls) if settings.tls.cert_file else None
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    role = settings.server.role
    async with contextlib.AsyncExitStack() as stack:
        if settings.with_local_model:
            # The model takes longer to load than the SDK to import, so that costs nothing here.
            stack.push_async_callback(_end, asyncio.create_task(load_sdk()))
        keys = await asyncio.to_thread(_keys, settings.encryption, progress)
        store, workers_store, clock = await _stores(settings, stack, keys)
        sealer = await store.write(lambda tx: tx.keys.obtain(*_REDIS_KEY)) if keys else None
        ids = TimeOrderedIds(clock=clock)
        if settings.store.url and not settings.redis.url:
            progress("no [redis] url: other replicas on this database will see runs of this one with a delay")
        (redis_url, compact), embedded = await _start_children(settings, stack, progress)
        # What deleted data leaves behind in files that are ours.
        wipes: list[Wipe] = [*compact, *([store.wipe] if isinstance(store, SqliteStore) else [])]
        model_settings = (*embedded, *settings.models)
        names = tuple(model.name for model in model_settings)
        # Again, because the local model could perhaps not be had.
        check_models(settings.policy, names)
        policies = Policies(settings.policy)
        hints = RedisHints(url=redis_url)
        hints.open()
        stack.push_async_callback(hints.close)
        patience = Patience()
        event_log = RedisEventLog(url=redis_url, patience=patience, sealer=sealer)
        feed = Feed(event_log=event_log)
        event_log.open(replay=feed.memory)
        stack.push_async_callback(event_log.close)
        thread_cache = RedisThreadCache(url=redis_url, patience=patience, sealer=sealer)
        thread_cache.open()
        stack.push_async_callback(thread_cache.close)
        models = ModelRegistry(settings=model_settings)
        stack.push_async_callback(models.close)
        lease = Lease(
            owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}", seconds=settings.worker.lease_seconds
        )
        limiter = RedisLimiter(url=redis_url, patience=patience, owner=lease.owner)
        limiter.open()
        stack.push_async_callback(limiter.close)
        gate = Gate(store=store, limiter=limiter, policies=policies)
        stack.push_async_callback(gate.close)
        router = Router(models=models, policies=policies)
        pseudonyms = Pseudonyms(key=await store.write(lambda tx: tx.secrets.obtain(PSEUDONYM_KEY)))
        asking = Asking(router=router, limiter=limiter, policies=policies, pseudonyms=pseudonyms)
        stack.push_async_callback(asking.close)
        ledger = Ledger(store=store, feed=feed, hints=hints)
        ledger.frees(gate.leave)
        worker = Worker(
            store=workers_store,
            feed=feed,
            ledger=ledger,
            thread_cache=thread_cache,
            executor=Executor(
                store=store,
                thread_cache=thread_cache,
                feed=feed,
                ledger=ledger,
                router=router,
                asking=asking,
                policies=policies,
                lease=lease,
                clock=clock,
                ids=ids,
            ),
            hints=hints,
            lease=lease,
            slots=0 if role == "api" else settings.worker.slots,
            policies=policies,
            clock=clock,
        )
        follower = Follower(store=store, feed=feed, event_log=event_log, hints=hints)
        watch = Watch(
            store=store,
            feed=feed,
            follower=follower,
            event_log=event_log,
            clock=clock,
            heartbeat_seconds=settings.server.heartbeat_seconds,
        )
        aftermath = Aftermath(thread_cache=thread_cache, feed=feed, worker=worker, gate=gate)
        threads = ThreadDesk(store=store, aftermath=aftermath, policies=policies, clock=clock, ids=ids)
        user_data = UserDataDesk(
            store=store,
            aftermath=aftermath,
            wipes=(event_log.flush, thread_cache.flush, *wipes),
            clock=clock,
            ids=ids,
        )
        sweeper = Sweeper(
            store=store,
            aftermath=aftermath,
            policies=policies,
            clock=clock,
            tombstone_days=settings.retention.tombstone_days,
        )
        desks = Desks(
            assistants=AssistantDesk(store=store, clock=clock, ids=ids),
            threads=threads,
            messages=MessageDesk(store=store, clock=clock, ids=ids),
            runs=RunDesk(
                store=store,
                feed=feed,
                ledger=ledger,
                worker=worker,
                watch=watch,
                threads=threads,
                gate=gate,
                models=router,
                policies=policies,
                clock=clock,
                ids=ids,
            ),
            watch=watch,
            usage=UsageDesk(store=store, policies=policies, clock=clock),
            user_data=user_data,
            export=Export(store=store, clock=clock),
        )
        audit = None
        if settings.audit.calls != "off":
            trail = AuditTrail(store=store, clock=clock, ids=ids)
            trail.open()
            # Once the server has stopped, the last calls are noted.
            stack.push_async_callback(trail.close)
            audit = Audit(calls=settings.audit.calls, trail=trail, pseudonyms=pseudonyms, clock=clock, ids=ids)
        known = KnownCallers(settings.auth, clock=clock) if settings.auth.configured else None
        if known is not None:
            await known.open()
            stack.push_async_callback(known.close)
        server = ApiServer(
            address=settings.server.listen,
            desks=None if role == "worker" else desks,
            clock=clock,
            ids=ids,
            access=Access(
                authenticator=known,
                open_reflection=settings.auth.open_reflection,
                plaintext=settings.auth.plaintext,
                certificates=certificates,
                health_address=settings.server.health_listen,
            ),
            page_key=await store.write(lambda tx: tx.secrets.obtain(_PAGE_KEY)),
            ping=workers_store.ping,
            slow_seconds=settings.server.slow_consumer_seconds,
            audit=audit,
        )

        def admit(auth: AuthSettings) -> None:
            if known is not None:
                known.exchange(auth)
                server.look_again_at_callers()

        address = await server.start()
        stack.push_async_callback(server.stop, grace_seconds=_CALLS_GRACE_SECONDS)
        if settings.store.url:
            follower.open()
            stack.push_async_callback(follower.close)
        if role != "api":
            worker.open()
            stack.push_async_callback(worker.close, grace=settings.server.drain_seconds)
            upkeep = Upkeep(
                [
                    Chore(sweeper.sweep, settings.retention.sweep_seconds),
                    Chore(user_data.resume, _RESUME_SECONDS),
                ]
            )
            upkeep.open()
            stack.push_async_callback(upkeep.close)
            stack.push_async_callback(_end, asyncio.create_task(models.warm_up()))
        # Streams must be told to resume elsewhere before the runs they watch are waited for.
        stack.callback(server.drain)
        yield RunningServer(
            address=address,
            models=names,
            default_model=names[0],
            scripted_model=SCRIPTED_MODEL if settings.with_scripted_model else None,
            policies=policies,
            admit=admit if known is not None else None,
            health_address=server.health_address,
        )


@contextlib.asynccontextmanager
async def open_store(settings: Settings, *, progress: Progress) -> AsyncIterator[AnyStore]:
    """The store alone, with the keys to it, for a command that may take long. Raises KeyUnusable or StoreUnusable."""
    keys = await asyncio.to_thread(_keys, settings.encryption, progress)
    store: AnyStore
    if url := settings.store.url:
        store = PostgresStore(url=url, pool=_COMMAND_CONNECTIONS, timeout=_COMMAND_SECONDS, keys=keys)
    else:
        store = SqliteStore(path=settings.database, clock=SystemClock(), keys=keys)
    await store.open()
    try:
        await store.read(lambda tx: tx.keys.check())
        yield store
    finally:
        await store.close()


def _keys(encryption: EncryptionSettings, progress: Progress) -> KeyCache | None:
    """What seals and opens, None where nothing is encrypted. Raises KeyUnusable."""
    if not encryption.is_on:
        return None
    # Here, because `cryptography` takes a moment, and nobody else needs it.
    from famulus_server.encryption.aes import AesVault

    files = [Path(file).expanduser() for file in (encryption.key_file, *encryption.old_key_files) if file]
    for file in files:
        if is_exposed(file):
            progress(f"[encryption] others than its owner may read {file}")
    keys = [read_key(file) for file in files]
    if encryption.key_command:
        keys.insert(0, ask_for_key(encryption.key_command))
    return KeyCache(vault=AesVault(key=keys[0], old=keys[1:]), scope=encryption.scope)


async def _stores(
    settings: Settings, stack: contextlib.AsyncExitStack, keys: KeyCache | None
) -> tuple[AnyStore, AnyStore, Clock]:
    """The store; the same one for the worker, with connections of its own, so that callers who wait for one another
    cannot cost it its leases; and its clock: replicas go by the one of their database, whatever their own ones say."""
    url = settings.store.url
    if url:
        shared = PostgresStore(url=url, pool=settings.store.pool, keys=keys)
        await shared.open()
        stack.push_async_callback(shared.close)
        await shared.read(lambda tx: tx.keys.check())
        workers = PostgresStore(url=url, pool=_WORKER_CONNECTIONS, clock=shared.clock, keys=keys)
        await workers.open()
        stack.push_async_callback(workers.close)
        return shared, workers, shared.clock
    clock = SystemClock()
    store = SqliteStore(path=settings.database, clock=clock, keys=keys)
    await store.open()
    stack.push_async_callback(store.close)
    await store.read(lambda tx: tx.keys.check())
    return store, store, clock


async def _start_children(
    settings: Settings, stack: contextlib.AsyncExitStack, progress: Progress
) -> tuple[tuple[str, list[Wipe]], list[ModelSettings]]:
    """Starts Redis and models side by side: they do not need each other, and each takes a moment."""
    try:
        async with asyncio.TaskGroup() as starting:
            redis_url = starting.create_task(_redis(settings, stack))
            models = starting.create_task(_embedded_models(settings, stack, progress))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return redis_url.result(), models.result()


async def _redis(settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[str, list[Wipe]]:
    """The URL, and how to wipe what is deleted from the files of a server that is ours."""
    if settings.redis.url:
        return settings.redis.url, []
    valkey = EmbeddedValkey(data_dir=settings.data_dir)
    url = await valkey.start()
    stack.push_async_callback(valkey.close)
    _supervise(valkey, "valkey", stack)
    return url, [valkey.compact]


async def _embedded_models(
    settings: Settings, stack: contextlib.AsyncExitStack, progress: Progress
) -> list[ModelSettings]:
    """The models that this process brings along: the local one first, where it can be had."""
    models: list[ModelSettings] = []
    if settings.with_local_model:
        try:
            weights = await _weights(progress)
            local = LocalModel(weights=weights, data_dir=settings.data_dir)
            models.append(
                ModelSettings(
                    name=MODEL_NAME, backend="chat", base_url=await local.start(), context_window=_LOCAL_CONTEXT
                )
            )
            stack.push_async_callback(local.close)
            _supervise(local, "local model", stack)
        except EmbeddedUnavailable as error:
            if settings.embedded.local_model == "on":
                raise
            progress(f"no local model: {error}")
            progress("using the scripted upstream instead: it answers by a script")
    if settings.with_scripted_model:
        # Here, because aiohttp takes a third of all the other imports together, and production needs it not.
        from famulus_server.embedded.upstream import ScriptedUpstream, default_script, load_script

        script = load_script(Path(settings.embedded.script)) if settings.embedded.script else default_script()
        upstream = ScriptedUpstream(script=script, history=100)
        models.append(ModelSettings(name=SCRIPTED_MODEL, backend="responses", base_url=await upstream.start()))
        stack.push_async_callback(upstream.close)
    return models


def _supervise(child: Child, name: str, stack: contextlib.AsyncExitStack) -> None:
    """Call it once the stack will close the child: supervision ends before that."""
    stack.push_async_callback(_end, asyncio.create_task(keep_running(child, name=name), name=f"supervise {name}"))


async def _weights(progress: Progress) -> Path:
    cache = cache_dir(os.environ)
    found = find_weights(cache)
    if found is not None:
        return found
    last = -1

    def tell(done: int, total: int) -> None:
        nonlocal last
        percent = done * 100 // total
        if percent // 10 != last:
            last = percent // 10
            progress(f"downloading the local model: {percent} % of {total // 1_000_000} MB")

    return await pull_weights(cache, environ=os.environ, progress=tell)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
