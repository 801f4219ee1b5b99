"""The model's part: what the scripted upstream says, and so what a run that completes must have written."""

import random
from collections.abc import Iterator, Mapping

from famulus.v1.tool_pb2 import FunctionTool, Tool
from famulus_server.embedded.upstream import Fault, Scene, Script
from famulus_server.embedded.upstream.script import Match

SAID = "You said: "
TOLD = "The tools say: "
FAULTY = ("flaky", "truncated")  # kinds of questions at which the model itself fails
# The six ways in which a stream may stop before its end.
TRUNCATIONS = ("eof", "mid_json", "no_completed", "error_event", "reset", "disconnect")
# Named by "weather" and "time" in what the user says.
TOOLS = [
    Tool(function=FunctionTool(name=name, parameters_json='{"type":"object","properties":{}}'))
    for name in ("get_weather", "get_time")
]
# Words of an answer by the kind of question; with the pace below they are the time that it takes.
_WORDS: Mapping[str, int] = {"swift": 4, "steady": 40, "slow": 150, "long": 1_200, "flaky": 15, "truncated": 8}
_FLAKY_FAULTS = 600
_BURST = (
    Fault(kind="status", status=500),
    Fault(kind="status", status=503),
    Fault(kind="status", status=429, headers={"retry-after-ms": "80"}),
    Fault(kind="reset_before_response"),
    Fault(kind="bad_json", after=4),
    Fault(kind="bad_utf8", after=4),
    Fault(kind="hang", after=5),
)


def question(kind: str, token: str) -> str:
    """What a user says to get an answer of this kind; the token makes it the only one of its kind."""
    words = [f"{token}-{number}" for number in range(_WORDS.get(kind.partition("-")[0], 3))]
    return " ".join((kind, token, *words))


def answer(said: str, outputs: Mapping[str, str]) -> str:
    """All that a run writes that completes; `outputs` by call ids, in the order of the calls."""
    return TOLD + "\n".join(outputs.values()) if outputs else SAID + said


def write_script(seed: int) -> Script:
    """The scenes for all kinds of questions; which flaky answers break, and how, is drawn from the seed."""
    scenes = [
        Scene(name="outputs", match=Match(tool_outputs=True), text=TOLD, quote_outputs=True, pace_ms=20),
        Scene(name="calls", match=Match(names_tool=True), call_tools=True),
        *(_echo("truncated-" + kind, fault=Fault(kind=kind, **_after(kind))) for kind in TRUNCATIONS),  # type: ignore[arg-type]
        _echo("swift"),
        _echo("steady", pace_ms=20),
        _echo("slow", pace_ms=20),
        _echo("long", pace_ms=1),
        *_flaky(random.Random(seed)),
        _echo("flaky", pace_ms=5),
    ]
    return Script(scenes=tuple(scenes))


def _flaky(rng: random.Random) -> Iterator[Scene]:
    for _ in range(_FLAKY_FAULTS):
        kind = rng.choice(TRUNCATIONS)
        fault = rng.choice((*_BURST, Fault(kind=kind, **_after(kind))))  # type: ignore[arg-type]
        yield _echo("flaky", fault=fault, pace_ms=5, times=1)
        yield _echo("flaky", pace_ms=5, times=rng.randint(1, 4))


def _echo(kind: str, *, fault: Fault | None = None, pace_ms: float = 0, times: int | None = None) -> Scene:
    match = Match(user_contains=kind)
    return Scene(name=kind, match=match, text=SAID, echo=True, fault=fault, pace_ms=pace_ms, times=times)


def _after(kind: str) -> dict[str, int]:
    return {} if kind == "no_completed" else {"after": 3}
