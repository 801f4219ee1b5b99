"""Hints between replicas over Redis Pub/Sub: one connection to hear, one to send, whatever the number of topics."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.loading import load
from famulus_server.coordination.reachability import Reachability

if TYPE_CHECKING:
    from famulus_server.coordination.channels import Publisher, Subscriber

# Different hints that may wait to be sent; more are lost.
_MAX_UNSENT = 4_096
# After so much silence the other side is asked for a sign of life, and has so long to give it.
_SILENCE_SECONDS = 2.0
_PATIENCE_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class RedisHints:
    """See `ports.Hints`. Open and close it."""

    def __init__(self, *, url: str) -> None:
        self._url = url
        # By topic, each under a key of its own: the same function may listen twice.
        self._listeners: dict[str, dict[object, Callable[[str], None]]] = {}
        # Topics that have got their first listener, or lost their last, since the other side was told.
        self._changed: set[str] = set()
        self._change = asyncio.Event()
        self._connected = False
        self._unsent: dict[tuple[str, str], None] = {}
        self._due = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Starts to hear and to send. Hints that were sent before wait for it."""
        self._running = asyncio.create_task(self._run(), name="hints")

    async def close(self) -> None:
        """Ends both, and closes the connections. Hints that were not sent yet are lost."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    def send(self, topic: str, text: str = "") -> None:
        if len(self._unsent) < _MAX_UNSENT:
            self._unsent[topic, text] = None
            self._due.set()

    def listen(self, topic: str, heard: Callable[[str], None]) -> Callable[[], None]:
        key = object()
        self._listeners.setdefault(topic, {})[key] = heard
        self._tell_change(topic)

        def stop() -> None:
            listeners = self._listeners.get(topic, {})
            listeners.pop(key, None)
            if not listeners:
                self._listeners.pop(topic, None)
                self._tell_change(topic)

        return stop

    def _tell_change(self, topic: str) -> None:
        # A new connection begins with all topics that somebody listens to then.
        if self._connected:
            self._changed.add(topic)
            self._change.set()

    async def _run(self) -> None:
        try:
            module = await load("channels")
            subscriber, publisher = module.Subscriber(url=self._url), module.Publisher(url=self._url)
        except Exception as error:  # noqa: BLE001 - its text may hold parts of the URL, and with them a password
            _log.warning("hints cannot be used", error=type(error).__name__)
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear_loop(subscriber), name="hints-hear")
            tasks.create_task(self._send_loop(publisher), name="hints-send")

    async def _send_loop(self, publisher: "Publisher") -> None:
        state = Reachability(name="hints (sending)")
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                hints, self._unsent = list(self._unsent), {}
                try:
                    await publisher.send(hints)
                except RedisUnavailable as error:
                    # They are lost: whoever is connected again looks at the truth anyway.
                    state.lost(error)
                    await state.pause()
                except Exception:  # noqa: BLE001 - as below
                    _log.exception("sending hints failed")
                    await state.pause()
                else:
                    state.found()
        finally:
            await publisher.close()

    async def _hear_loop(self, subscriber: "Subscriber") -> None:
        state = Reachability(name="hints (hearing)")
        while True:
            try:
                await subscriber.connect()
                await self._hear(subscriber, state)
            except RedisUnavailable as error:
                state.lost(error)
            except Exception:  # noqa: BLE001 - nobody would miss the hints for the rest of this process's life
                _log.exception("hearing hints failed")
            finally:
                await subscriber.close()
            await state.pause()

    async def _hear(self, subscriber: "Subscriber", state: Reachability) -> None:
        """Returns never; raises RedisUnavailable once the connection is lost."""
        self._changed = set(self._listeners)
        self._change.set()
        self._connected = True
        subscribing = asyncio.create_task(self._subscribe(subscriber), name="hints-subscribe")
        try:
            while True:
                news = await subscriber.hear(within=_SILENCE_SECONDS)
                if news is None:
                    await subscriber.ping()
                    news = await subscriber.hear(within=_PATIENCE_SECONDS)
                if news is None:
                    raise RedisUnavailable("no sign of life")
                if subscribing.done():
                    raise RedisUnavailable("the subscriptions cannot be changed")
                state.found()
                self._tell(news.topic, news.text)
        finally:
            self._connected = False
            subscribing.cancel()
            # Where it failed, the connection did, and hearing has failed, too.
            await asyncio.gather(subscribing, return_exceptions=True)

    async def _subscribe(self, subscriber: "Subscriber") -> None:
        """Keeps the subscriptions of one connection as the listeners are."""
        held: set[str] = set()
        while True:
            await self._change.wait()
            self._change.clear()
            changed, self._changed = self._changed, set()
            wanted = {topic for topic in changed if topic in self._listeners}
            await subscriber.unsubscribe((changed - wanted) & held)
            await subscriber.subscribe(wanted - held)
            held -= changed
            held |= wanted

    def _tell(self, topic: str, text: str) -> None:
        for heard in list(self._listeners.get(topic, {}).values()):
            try:
                heard(text)
            except Exception:  # noqa: BLE001 - one listener's fault is not the others'; the log has it
                _log.exception("a listener failed", topic=topic)
