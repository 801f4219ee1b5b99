"""The configured models: implements the port `Models`."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from famulus_server.models.breaker import Breaker, BreakerModel, BreakerState
from famulus_server.models.chat import ChatFormat
from famulus_server.models.connection import Connection
from famulus_server.models.measured import MeasuredModel
from famulus_server.models.responses import ResponsesFormat
from famulus_server.models.retry import RetryingModel
from famulus_server.models.settings import ModelSettings
from famulus_server.models.streamed import StreamedModel, WireFormat
from famulus_server.models.traced import TracedModel
from famulus_server.ports import UNTRACED, Metrics, Model, ModelCard, Tracer


@dataclass(frozen=True, slots=True)
class _Entry:
    card: ModelCard
    connection: Connection
    breaker: Breaker
    model: Model


class ModelRegistry:
    """Makes one client with its pool of connections, one breaker and one retry budget, per configured
    model."""

    def __init__(
        self,
        *,
        settings: Sequence[ModelSettings],
        metrics: Metrics,
        now: Callable[[], float] = time.monotonic,
        tracer: Tracer = UNTRACED,
    ) -> None:
        """`now` is in seconds, from any start. Raises ValueError where two models have one name."""
        self._entries = {model.name: _make_entry(model, metrics, now, tracer) for model in settings}
        if len(self._entries) != len(settings):
            raise ValueError("two models of the configuration have the same name")

    def card(self, name: str) -> ModelCard | None:
        entry = self._entries.get(name)
        return entry.card if entry else None

    def open(self, name: str) -> Model:
        return self._entries[name].model

    def rests(self, name: str) -> float:
        return self._entries[name].breaker.rest

    def breakers(self) -> Mapping[str, BreakerState]:
        """How the breaker of each model is, by the model's name."""
        return {name: entry.breaker.state for name, entry in self._entries.items()}

    async def warm_up(self) -> None:
        """Makes the clients, so that the first turn need not wait for it. Takes 1-2 s of a thread; best in a task of
        its own once the server listens."""
        for entry in self._entries.values():
            await entry.connection.client()

    async def close(self) -> None:
        """Closes all connections."""
        for entry in self._entries.values():
            await entry.connection.close()


def _make_entry(settings: ModelSettings, metrics: Metrics, now: Callable[[], float], tracer: Tracer) -> _Entry:
    connection = Connection(settings=settings)
    wire: WireFormat
    wire = ChatFormat(settings=settings) if settings.backend == "chat" else ResponsesFormat(settings=settings)
    once: Model = StreamedModel(connection=connection, wire=wire, settings=settings)
    if tracer.on:
        # Each try is a call of its own, and those that the breaker refuses are none.
        once = TracedModel(model=once, settings=settings, tracer=tracer)
    card = ModelCard(
        name=settings.name,
        context_window=settings.context_window,
        max_output_tokens=settings.max_output_tokens,
        built_in_tools=settings.backend == "responses" and settings.built_in_tools,
    )
    breaker = Breaker(model=settings.name, settings=settings.breaker, now=now)
    # Below the retries: each try counts, and none is made while the breaker is open.
    guarded = BreakerModel(model=once, breaker=breaker)
    measured = MeasuredModel(model=guarded, name=settings.name, metrics=metrics)
    return _Entry(card, connection, breaker, RetryingModel(model=measured, settings=settings.retry))
