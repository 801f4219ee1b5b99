"""A whole server: everything it consists of is made, opened in order, and closed in reverse."""

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from famulus_server.api.addresses import check_free
from famulus_server.api.audit import Audit
from famulus_server.api.server import Access, ApiServer, Desks
from famulus_server.api.tls import ServerCertificates
from famulus_server.config import SCRIPTED_MODEL, Settings, check, check_models
from famulus_server.coordination.event_log import RedisEventLog
from famulus_server.coordination.hints import RedisHints
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.coordination.patience import Patience
from famulus_server.coordination.thread_cache import RedisThreadCache
from famulus_server.engine.aftermath import Aftermath
from famulus_server.engine.asking import Asking
from famulus_server.engine.assistants import AssistantDesk
from famulus_server.engine.audit import AuditTrail
from famulus_server.engine.clock import TimeOrderedIds
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
from famulus_server.engine.run_metrics import RunMetrics
from famulus_server.engine.runs import RunDesk
from famulus_server.engine.threads import ThreadDesk
from famulus_server.engine.upkeep import Chore, Upkeep
from famulus_server.engine.usage import UsageDesk
from famulus_server.engine.user_data import UserDataDesk, Wipe
from famulus_server.engine.waiting_runs import WaitingRuns
from famulus_server.engine.watch import Watch
from famulus_server.engine.worker import Worker
from famulus_server.identity.authenticator import KnownCallers
from famulus_server.identity.settings import AuthSettings
from famulus_server.models.connection import load_sdk
from famulus_server.models.registry import ModelRegistry
from famulus_server.ports import Lease
from famulus_server.store.measured import MeasuredStore
from famulus_server.store.sqlite import SqliteStore
from famulus_server.telemetry.metrics import Measurements
from famulus_server.wiring.children import end, start_children
from famulus_server.wiring.metrics import serve_metrics, show_process, show_redis, show_stores, show_work
from famulus_server.wiring.progress import Progress
from famulus_server.wiring.stores import open_stores, read_keys
from famulus_server.wiring.traces import open_traces

_PAGE_KEY = "page-tokens"
# The tenant, which is nobody's, and the scope of the data key that seals what Redis has of conversations.
_REDIS_KEY = (".", "redis")
# After the runs at work have ended or been given back, calls have this long to end.
_CALLS_GRACE_SECONDS = 2.0
# Between two looks for deletions that nobody goes on with.
_RESUME_SECONDS = 5.0
# Between two looks at how many runs wait.
_LOOK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts calls. `default_model` is the best model to try it with; what `policies` holds may be
    exchanged, and who may call by `admit`, unless nobody is asked who he is. `warming` is done once everything that is
    imported late is there."""

    address: str
    models: tuple[str, ...]
    default_model: str
    scripted_model: str | None
    policies: Policies
    admit: Callable[[AuthSettings], None] | None = None
    health_address: str = ""
    metrics_address: str = ""
    warming: "asyncio.Task[None] | None" = None


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
    check_free(settings.metrics.listen)
    certificates = ServerCertificates(settings.tls) if settings.tls.cert_file else None
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    role = settings.server.role
    owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    async with contextlib.AsyncExitStack() as stack:
        tracer = await open_traces(stack, owner)
        # The first to come and the last to go: so it can be seen how the server stops.
        metrics = Measurements()
        metrics_address = await serve_metrics(settings.metrics.listen, metrics, stack)
        if settings.with_local_model:
            # The model takes longer to load than the SDK to import, so that costs nothing here.
            stack.push_async_callback(end, asyncio.create_task(load_sdk()))
        keys = await asyncio.to_thread(read_keys, settings.encryption, progress)
        opened, opened_for_worker, clock = await open_stores(settings, stack, keys)
        show_stores(metrics, [opened, opened_for_worker])
        store = MeasuredStore(opened, metrics=metrics)
        workers_store = MeasuredStore(opened_for_worker, metrics=metrics)
        sealer = await store.write(lambda tx: tx.keys.obtain(*_REDIS_KEY)) if keys else None
        ids = TimeOrderedIds(clock=clock)
        if settings.store.url and not settings.redis.url:
            progress("no [redis] url: other replicas on this database will see runs of this one with a delay")
        (redis_url, compact), embedded = await start_children(settings, stack, progress)
        # What deleted data leaves behind in files that are ours.
        wipes: list[Wipe] = [*compact, *([opened.wipe] if isinstance(opened, SqliteStore) else [])]
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
        models = ModelRegistry(settings=model_settings, metrics=metrics, tracer=tracer)
        stack.push_async_callback(models.close)
        lease = Lease(owner=owner, seconds=settings.worker.lease_seconds)
        limiter = RedisLimiter(url=redis_url, patience=patience, owner=lease.owner)
        limiter.open()
        stack.push_async_callback(limiter.close)
        show_redis(metrics, event_log=event_log, thread_cache=thread_cache, limiter=limiter, patience=patience)
        run_metrics = RunMetrics(metrics=metrics, policies=policies, clock=clock)
        gate = Gate(store=store, limiter=limiter, policies=policies)
        router = Router(models=models, policies=policies)
        pseudonyms = Pseudonyms(key=await store.write(lambda tx: tx.secrets.obtain(PSEUDONYM_KEY)))
        asking = Asking(router=router, limiter=limiter, policies=policies, pseudonyms=pseudonyms, metrics=run_metrics)
        stack.push_async_callback(asking.close)
        ledger = Ledger(store=store, feed=feed, hints=hints, metrics=run_metrics)
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
                metrics=run_metrics,
                lease=lease,
                clock=clock,
                ids=ids,
                tracer=tracer,
            ),
            hints=hints,
            lease=lease,
            slots=0 if role == "api" else settings.worker.slots,
            policies=policies,
            metrics=run_metrics,
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
        waiting = WaitingRuns(store=store)
        show_work(metrics, worker=worker, waiting=waiting, models=models, sweeper=sweeper)
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
                metrics=run_metrics,
                clock=clock,
                ids=ids,
                tracer=tracer,
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
            metrics=metrics,
            page_key=await store.write(lambda tx: tx.secrets.obtain(_PAGE_KEY)),
            ping=opened_for_worker.ping,
            slow_seconds=settings.server.slow_consumer_seconds,
            audit=audit,
            tracer=tracer,
        )

        show_process(metrics, role=role, policies=policies, server=server)

        def admit(auth: AuthSettings) -> None:
            if known is not None:
                known.exchange(auth)
                server.look_again_at_callers()

        address = await server.start()
        stack.push_async_callback(server.stop, grace_seconds=_CALLS_GRACE_SECONDS)
        if settings.store.url:
            follower.open()
            stack.push_async_callback(follower.close)
        looks = Upkeep([Chore(waiting.look, _LOOK_SECONDS)])
        looks.open()
        stack.push_async_callback(looks.close)
        warming = None
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
            warming = asyncio.create_task(models.warm_up())
            stack.push_async_callback(end, warming)
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
            metrics_address=metrics_address,
            warming=warming,
        )
