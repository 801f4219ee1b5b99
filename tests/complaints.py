"""What the server complains of in its log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import structlog
from structlog.typing import EventDict


@contextmanager
def heard_complaints() -> Iterator[list[EventDict]]:
    """The errors that are logged from now on, instead of being written. Loggers that were used before keep quiet."""
    complaints: list[EventDict] = []

    def complain(_: object, __: str, event: EventDict) -> Never:
        complaints.append(event)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[complain], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield complaints
    finally:
        structlog.configure(**before)
