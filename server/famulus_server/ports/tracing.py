"""The port to traces: what a call, an attempt at a run and a question to a model have to do with each other, and how
long each took. Nothing that users or models say goes into a span, nor who they are."""

from collections.abc import Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import Protocol, Self

Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


class SpanKind(Enum):
    """Whose work a span is."""

    SERVER = "server"  # asked for by somebody else
    CLIENT = "client"  # done by somebody else
    INTERNAL = "internal"


class Span(Protocol):
    """A piece of work. None of its methods raises. As a context manager it is the current span of the task, with its
    ids in what the task logs, and ends with the block; otherwise `end` it."""

    @property
    def traceparent(self) -> str:
        """Its name for those who continue the trace elsewhere (W3C Trace Context); empty where nothing is traced."""

    def note(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def tell(self, event: str, attributes: Attributes) -> None:
        """Adds an event, which happens now."""

    def fail(self, kind: str) -> None:
        """The work failed; `kind` is one of a few words, never the text of an error."""

    def end(self) -> None:
        """The work is over."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Tracer(Protocol):
    """Makes spans. None of its methods raises."""

    @property
    def on(self) -> bool:
        """Whether anybody is told of them."""

    def start(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: str | None = None,
        state: str = "",
    ) -> Span:
        """A span below the current one, or below the `parent` that a traceparent names, with its tracestate; a bad one
        is none, and then a trace begins."""

    def traceparent(self) -> str:
        """That of the current span; empty where there is none."""


class _NoSpan:
    """Implements the port `Span` where nothing is traced."""

    traceparent = ""

    def note(self, attributes: Attributes) -> None:
        pass

    def tell(self, event: str, attributes: Attributes) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass

    def end(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Untraced:
    """Implements the port `Tracer` where nothing is traced."""

    on = False
    _span = _NoSpan()

    def start(
        self,
        name: str,  # noqa: ARG002 - those of the port
        kind: SpanKind,  # noqa: ARG002
        attributes: Attributes,  # noqa: ARG002
        *,
        parent: str | None = None,  # noqa: ARG002
        state: str = "",  # noqa: ARG002
    ) -> Span:
        return self._span

    def traceparent(self) -> str:
        return ""


UNTRACED: Tracer = _Untraced()
"""Traces nothing, and costs next to nothing."""
