"""A whole server before a scripted upstream that the test steers, and what each kind of run is expected to do on it."""

import asyncio
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus_server.config import SCRIPTED_MODEL, EmbeddedSettings, Settings
from famulus_server.embedded.upstream import Script, ScriptedUpstream
from famulus_server.embedded.upstream.recorder import ReceivedRequest
from famulus_server.embedded.upstream.script import Fault, Match, Scene, ToolCall
from famulus_server.engine.lifecycle import COMPLETED, FAILED, INCOMPLETE, REQUIRES_ACTION
from famulus_server.models.settings import BreakerSettings, ModelSettings, RetrySettings
from serving import settings_in

PATIENCE = 20.0  # seconds until something that must happen counts as not happening
MOST_RUNS = 5_000  # of one test: runs that break once need scenes of their own
FUNCTION = "look_up"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of run: where it stops, one after the other, and the text of the messages that it writes.

    Of a run with tools only the text before the last message is known beforehand: that one quotes the outputs.
    """

    stops: tuple["RunState.ValueType", ...]
    texts: tuple[str, ...] = ()
    quotes: bool = False
    holds: bool = False  # goes on only when released, or never where it has no stops
    error: "RunErrorCode.ValueType" = RunErrorCode.RUN_ERROR_CODE_UNSPECIFIED
    max_turns: int = 0
    events: tuple[str, ...] = ()  # kinds of events that there must be


_ONCE = (REQUIRES_ACTION, COMPLETED)
SCENARIOS = {
    "plain": Scenario((COMPLETED,), ("Plain words only.",)),
    "paced": Scenario((COMPLETED,), ("One word after the other.",)),
    "held": Scenario((COMPLETED,), ("These words have to wait.",), holds=True),
    "hung": Scenario((), ("It ends in the",), holds=True),
    "call": Scenario(_ONCE, quotes=True, events=("tool_calls_requested", "tool_output_received")),
    "calls": Scenario(_ONCE, ("Let me see. ",), quotes=True, events=("tool_calls_requested", "tool_output_received")),
    "rounds": Scenario((REQUIRES_ACTION, REQUIRES_ACTION, COMPLETED), quotes=True, events=("tool_calls_requested",)),
    "endless": Scenario((REQUIRES_ACTION, INCOMPLETE), max_turns=2, events=("tool_calls_requested",)),
    "garbled": Scenario((COMPLETED,), quotes=True, events=("tool_call_delta",)),
    "half_garbled": Scenario(_ONCE, quotes=True, events=("tool_calls_requested", "tool_output_received")),
    "stranger": Scenario((COMPLETED,), quotes=True, events=("tool_call_delta",)),
    "limited": Scenario((COMPLETED,), ("After a pause.",), events=("retry_scheduled",)),
    "cut": Scenario((COMPLETED,), ("Whole at the second try.",), events=("attempt_started",)),
    "broken": Scenario((FAILED,), error=RunErrorCode.RUN_ERROR_CODE_MODEL_PROTOCOL, events=("attempt_started",)),
    "refused": Scenario((FAILED,), error=RunErrorCode.RUN_ERROR_CODE_INVALID_PROMPT),
    "long": Scenario((INCOMPLETE,), ("Too long to",)),
}


def instructions(scenario: str, number: int) -> str:
    """The additional instructions by which the upstream knows what to play for a run, and the test its requests."""
    return f"Play {scenario} for run {number}."


def script() -> Script:
    """The scenes of all scenarios."""
    good, bad = ToolCall(name=FUNCTION, arguments={"word": "tea"}), ToolCall(name=FUNCTION, arguments='{"word": ')
    quote = {"text": "It is ", "quote_outputs": True}
    numbers = range(1, MOST_RUNS + 1)
    return Script(
        models=(SCRIPTED_MODEL,),
        scenes=(
            _scene("plain", text=SCENARIOS["plain"].texts[0]),
            _scene("paced", text=SCENARIOS["paced"].texts[0], pace_ms=3),
            _scene("held", text=SCENARIOS["held"].texts[0], hold_after=2),
            _scene("hung", text=SCENARIOS["hung"].texts[0], fault=Fault(kind="hang", after=2)),
            _scene("call", False, tool_calls=(good,)),
            _scene("calls", False, text=SCENARIOS["calls"].texts[0], tool_calls=(good, good)),
            _scene("rounds", False, tool_calls=(good,)),
            _scene("endless", tool_calls=(good,)),
            _scene("garbled", False, tool_calls=(bad,)),
            _scene("half_garbled", False, tool_calls=(bad, good)),
            _scene("stranger", False, tool_calls=(ToolCall(name="nobody"),)),
            _scene("broken", text="Never whole at all.", fault=Fault(kind="eof", after=2)),
            _scene("refused", fault=Fault(kind="status", status=400)),
            _scene("long", text=SCENARIOS["long"].texts[0], finish="length"),
            *(_scene(f"rounds for run {n}.", True, times=1, tool_calls=(good,)) for n in numbers),
            *(_scene(name, True, **quote) for name, scenario in SCENARIOS.items() if scenario.quotes),
            *(_scene(f"limited for run {n}.", times=1, fault=Fault(kind="status", status=429)) for n in numbers),
            _scene("limited", text=SCENARIOS["limited"].texts[0]),
            *(_scene(f"cut for run {n}.", times=1, fault=Fault(kind="eof", after=2)) for n in numbers),
            _scene("cut", text=SCENARIOS["cut"].texts[0]),
        ),
    )


def _scene(name: str, tool_outputs: bool | None = None, **fields: Any) -> Scene:
    system = f"Play {name}" if name.endswith(".") else f"Play {name} for"
    return Scene(name=name, match=Match(system_contains=system, tool_outputs=tool_outputs), **fields)


def server_settings(folder: Path, base_url: str) -> Settings:
    """Those of a server before this upstream; it asks again at once, and as often as it is to."""
    base = settings_in(folder)
    retry = RetrySettings(base_delay=0.002, max_delay=0.01, budget=1.0, reserve=1_000)
    patient = BreakerSettings(min_calls=1_000_000)
    model = ModelSettings(name=SCRIPTED_MODEL, backend="responses", base_url=base_url, retry=retry, breaker=patient)
    embedded = EmbeddedSettings(local_model="off", scripted_model="off")
    return Settings(server=base.server, metrics=base.metrics, embedded=embedded, models=(model,))


class UpstreamThread:
    """The scripted upstream on an event loop of its own, steered from other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._upstream = ScriptedUpstream(script=script(), history=MOST_RUNS)
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream")

    def start(self) -> str:
        """Returns the base URL."""
        self._thread.start()
        return str(self._run(self._upstream.start()))

    def stop(self) -> None:
        self._run(self._upstream.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def bodies(self, number: int) -> list[str]:
        """What was asked for a run, as text, one request after the other."""
        return [str(request.body) for request in self._run(self._requests(number))]

    def release(self, number: int) -> None:
        """Lets the held answers of a run go on."""
        self._run(self._release(number))

    def wait_for_end(self, number: int) -> list[str]:
        """The outcomes of all requests for a run, once they are over; TimeoutError after 5 seconds (contract 22)."""
        outcomes: list[str] = self._run(self._outcomes(number))
        return outcomes

    async def _requests(self, number: int) -> list[ReceivedRequest]:
        wanted = f"for run {number}."
        return [request for request in self._upstream.requests if wanted in str(request.body.get("instructions"))]

    async def _release(self, number: int) -> None:
        for request in await self._requests(number):
            request.released.set()

    async def _outcomes(self, number: int) -> list[str]:
        requests = await self._requests(number)
        async with asyncio.timeout(5):
            for request in requests:
                await request.closed.wait()
        return [request.outcome for request in requests]

    def _run(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(PATIENCE)


class Watcher:
    """Reads a stream of events in a thread, to its end."""

    def __init__(self, responses: Any, after_sequence: int) -> None:
        """`responses` is the call of a streaming stub."""
        self.after_sequence = after_sequence
        self.events: list[RunEvent] = []
        self.error: grpc.RpcError | None = None
        self._responses: Iterable[Any] = responses
        self._thread = threading.Thread(target=self._read, name="watcher", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once the stream has ended; `error` says how."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"the stream goes on; the last event was {self.events[-1:]}"

    def _read(self) -> None:
        try:
            for response in self._responses:
                self.events.extend(response.events)
        except grpc.RpcError as error:
            self.error = error
