"""Logs: one JSON object per line, or aligned text where a person reads along.

Nobody logs what users and models say, nor secrets. In case somebody does, the fields that hold it in the API are struck
out here, and whatever looks like a secret: in texts and tracebacks, our own and those of libraries.
"""

import logging
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from famulus_server.telemetry.redaction import REDACTED, Redaction

_CONTENT = frozenset(
    {
        "additional_instructions",
        "arguments",
        "arguments_json",
        "comment",
        "content",
        "instructions",
        "messages",
        "output",
        "prompt",
        "refusal",
        "text",
        "title",
    }
)
# Ours, in every line: what is in them is no caller's choice.
_SAFE = frozenset({"code", "level", "method", "milliseconds", "timestamp"})
_CHATTY = ("alembic", "httpx2", "httpcore2", "openai")
# Quotes what is wrong in a `tracestate`, which anybody may send, in any number.
_QUOTING = "opentelemetry.trace"


def configure_logs(
    *, level: str = "info", stream: TextIO | None = None, json: bool | None = None, secrets: Collection[str] = ()
) -> None:
    """Sends what structlog and the standard library log to `stream` (stderr by default), from `level` upwards. JSON
    unless the stream is a terminal, or as `json` says. `secrets` are struck out wherever they stand, besides what looks
    like one. Raises ValueError for an unknown level."""
    target = stream or sys.stderr
    as_json = not target.isatty() if json is None else json
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level")
    preparing: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _stamp if as_json else structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Before the next one: exceptions quote what they failed at. Without the values of variables.
        structlog.processors.format_exc_info,
        _Redact(Redaction(secrets=secrets)),
    )
    rendering: Sequence[Processor] = (
        (structlog.processors.JSONRenderer(serializer=_encode),)
        if as_json
        else (structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),)
    )
    writing = structlog.WriteLogger(target)
    # Our own lines do not go through the standard library, which would take three times as long for each.
    structlog.configure(
        processors=[*preparing, *rendering],
        logger_factory=lambda *_: writing,
        wrapper_class=structlog.make_filtering_bound_logger(number),
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=(*preparing, structlog.stdlib.add_logger_name),
            processors=(structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering),
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    # What libraries tell of each step is for those who debug.
    for library in _CHATTY:
        logging.getLogger(library).setLevel(max(number, logging.WARNING) if number > logging.DEBUG else number)
    logging.getLogger(_QUOTING).setLevel(logging.ERROR)


def _stamp(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The processor that says when. The encoder writes it out, in a fraction of the time that Python takes."""
    event["timestamp"] = datetime.now(UTC)
    return event


def _encode(event: EventDict, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=repr).decode()


class _Redact:
    """The processor that strikes out."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction

    def __call__(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        for name, value in event.items():
            if name in _CONTENT:
                event[name] = REDACTED
            elif name not in _SAFE and not name.startswith("_"):  # these are structlog's own
                event[name] = self._redaction.of(name, value)
        return event
