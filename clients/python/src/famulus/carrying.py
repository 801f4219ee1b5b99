"""Channels whose calls carry more metadata than the caller gives."""

from collections.abc import Callable
from typing import Any


def carrying(channel: Any, add: Callable[[Any], Any]) -> Any:
    """What stubs are made on, so that `add` gets the metadata of each call, or None, and gives those that are sent."""
    return _Channel(channel, add)


def _carrying(call: Callable[..., Any], add: Callable[[Any], Any]) -> Callable[..., Any]:
    def carry(
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: Any = None,
        wait_for_ready: bool | None = None,
        compression: Any = None,
    ) -> Any:
        return call(
            request,
            timeout=timeout,
            metadata=add(metadata),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )

    return carry


class _Method:
    """A method of a stub, in all the ways in which it can be called. No interceptor: those of grpc.aio put a call of
    their own around each."""

    def __init__(self, method: Any, add: Callable[[Any], Any]) -> None:
        self._call = _carrying(method, add)
        for way in ("with_call", "future"):  # of threads only
            if hasattr(method, way):
                setattr(self, way, _carrying(getattr(method, way), add))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._call(*arguments, **options)


class _Channel:
    """Makes the methods of stubs, as a channel does."""

    def __init__(self, channel: Any, add: Callable[[Any], Any]) -> None:
        self._channel = channel
        self._add = add

    def unary_unary(self, *arguments: Any, **options: Any) -> _Method:
        return _Method(self._channel.unary_unary(*arguments, **options), self._add)

    def unary_stream(self, *arguments: Any, **options: Any) -> _Method:
        return _Method(self._channel.unary_stream(*arguments, **options), self._add)

    def stream_unary(self, *arguments: Any, **options: Any) -> _Method:
        return _Method(self._channel.stream_unary(*arguments, **options), self._add)

    def stream_stream(self, *arguments: Any, **options: Any) -> _Method:
        return _Method(self._channel.stream_stream(*arguments, **options), self._add)
