"""Logs: one JSON object per line, or aligned text where a person reads along.

Nobody logs what users and models say. In case somebody does, the fields that hold it in the API are struck out here.
"""

import logging
import sys
from collections.abc import Sequence
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

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
_REDACTED = "[redacted]"


def configure_logs(*, level: str = "info", stream: TextIO | None = None, json: bool | None = None) -> None:
    """Sends what structlog and the standard library log to `stream` (stderr by default), from `level` upwards. JSON
    unless the stream is a terminal, or as `json` says. Raises ValueError for an unknown level."""
    target = stream or sys.stderr
    as_json = not target.isatty() if json is None else json
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level")
    both: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
    )
    rendering: Sequence[Processor] = (
        (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False))
        if as_json
        else (structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),)
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=both,
            processors=(structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering),
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(number)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *both,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for name in _CONTENT & event.keys():
        event[name] = _REDACTED
    return event
