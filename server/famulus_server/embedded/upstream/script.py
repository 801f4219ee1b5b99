"""The script format: what the scripted upstream answers, and when. `docs/scripted-upstream.md` explains every key."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]

Finish = Literal["stop", "length", "content_filter"]
Quirk = Literal[
    "delta_first",  # the first delta comes before the event that opens its item
    "no_indexes",
    "no_sequence_numbers",
    "no_usage",
    "says_completed",  # claims a full answer although it was cut short
    "unknown_event",
]
FaultKind = Literal[
    # instead of an answer
    "status",
    "hang_before_response",
    "reset_before_response",
    # the stream stops
    "hang",
    "pings",
    "eof",
    "mid_json",
    "no_completed",
    "no_done",
    "error_event",
    "response_failed",
    "reset",
    "disconnect",
    # one bad line, then the stream goes on
    "bad_json",
    "bad_utf8",
    "lone_surrogate",
    "long_line",
]

# Keys that mean something for some kinds only. A key that would be ignored is an error in the script.
_KINDS_OF_KEY: dict[str, set[str]] = {
    "status": {"status"},
    "headers": {"status"},
    "code": {"status", "error_event", "response_failed"},
    "message": {"status", "error_event", "response_failed"},
    "interval_ms": {"pings"},
    "size": {"long_line"},
}
INSTEAD_OF_ANSWER = {"status", "hang_before_response", "reset_before_response"}
_KINDS_WITHOUT_AFTER = INSTEAD_OF_ANSWER | {"no_completed", "no_done"}


class ScriptError(ValueError):
    """A script that cannot be used. The text names the source and the key."""


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Conditions on a request; all that are given must hold."""

    api: Literal["responses", "chat", "input_tokens"] | None = None
    model: str | None = None
    stream: bool | None = None
    user_contains: str | None = None
    system_contains: str | None = None
    tool_outputs: bool | None = None
    tool: str | None = None
    names_tool: bool | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call the answer makes. `arguments` as text is sent as it is, legal JSON or not."""

    name: str
    arguments: str | dict[str, Any] = "{}"
    id: str | None = None
    repeat: Positive = 1


class Usage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Token counts to report; those left out are counted, one per word or delta."""

    input: Count | None = None
    cached: Count = 0
    output: Count | None = None
    reasoning: Count | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong. `after` counts deltas, `interval_ms` is milliseconds, `size` bytes."""

    kind: FaultKind
    after: Count | None = None
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    headers: dict[str, str] | None = None
    code: str | None = None
    message: str | None = None
    interval_ms: Annotated[float, msgspec.Meta(gt=0)] | None = None
    size: Positive | None = None

    def __post_init__(self) -> None:
        for key, kinds in _KINDS_OF_KEY.items():
            if getattr(self, key) is not None and self.kind not in kinds:
                raise ValueError(f"`{key}` has no meaning for the fault `{self.kind}`")
        if self.after is not None and self.kind in _KINDS_WITHOUT_AFTER:
            raise ValueError(f"`after` has no meaning for the fault `{self.kind}`")
        if self.kind == "status" and self.status is None:
            raise ValueError("the fault `status` needs the key `status`")


class Scene(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer and the requests it is for."""

    name: str | None = None
    match: Match = Match()
    times: Positive | None = None
    text: str | tuple[str, ...] | None = None
    deltas: Count | None = None
    echo: bool = False
    quote_outputs: bool = False
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    call_tools: bool = False
    annotations: tuple[dict[str, Any], ...] = ()
    items: tuple[dict[str, Any], ...] = ()
    phase: Literal["commentary", "final_answer"] | None = None
    finish: Finish = "stop"
    usage: Usage = Usage()
    first_ms: NotNegative = 0
    pace_ms: NotNegative = 0
    hold_after: Count | None = None
    headers: dict[str, str] | None = None
    quirks: tuple[Quirk, ...] = ()
    fault: Fault | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.deltas is not None:
            raise ValueError("`text` and `deltas` exclude each other")
        instead = self.fault is not None and self.fault.kind in INSTEAD_OF_ANSWER
        if self.headers and instead:
            raise ValueError("`headers` are those of an answer; a fault instead of one has its own")
        if self.match.api == "input_tokens" and self.fault is not None and not instead:
            raise ValueError(f"the fault `{self.fault.kind}` has no meaning for the count of input tokens")


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scenes in the order in which they are tried, and what `GET /v1/models` lists."""

    scenes: tuple[Scene, ...] = msgspec.field(name="scene", default=())
    models: tuple[str, ...] = ("scripted",)
    check_tool_pairs: bool = True


def parse_script(data: bytes | str, *, source: str, syntax: Literal["toml", "json"] = "toml") -> Script:
    """Read a script. Raises ScriptError, which names `source` and the key at fault."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    try:
        document = tomllib.loads(text) if syntax == "toml" else msgspec.json.decode(text)
        return msgspec.convert(document, Script)
    except (tomllib.TOMLDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise ScriptError(f"{source}: {error}") from error


def load_script(path: Path) -> Script:
    """Read a script file; `.json` is JSON, everything else TOML. Raises ScriptError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}") from error
    return parse_script(data, source=str(path), syntax="json" if path.suffix == ".json" else "toml")


def default_script() -> Script:
    """Echo the user word by word, call the tools the user names, quote what they returned."""
    text = resources.files(__package__).joinpath("default.toml").read_text(encoding="utf-8")
    return parse_script(text, source="default.toml")
