"""The SDK's client, which builds what is the same in all turns once. Import it in a thread: it brings the SDK."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from openai import AsyncAPIResponse, AsyncOpenAI
from openai._models import FinalRequestOptions
from openai._response import AsyncResponseContextManager

# Asks the SDK for the answer as it comes, as its `with_streaming_response` does.
_AS_IT_COMES = {"X-Stainless-Raw-Response": "stream"}


@dataclass(frozen=True, slots=True)
class _Frame:
    """A request without its body, without the headers that are given with each, and without cookies, which change."""

    url: httpx2.URL
    headers: list[tuple[bytes, bytes]]
    extensions: Mapping[str, Any]


class Client(AsyncOpenAI):
    """Takes a turn's body as it is to be sent: the SDK's resources look through all of it, at 1 ms per input item. Its
    key stays what it was at the first turn."""

    def __init__(self, **given: Any) -> None:
        """As the SDK's."""
        super().__init__(**given)
        # By their paths, what the SDK makes of requests that have no body yet; by names of headers, what it sends.
        self._turns: dict[str, FinalRequestOptions] = {}
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def turn(
        self, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncResponseContextManager[AsyncAPIResponse[Any]]:
        """The request of a turn, sent on entering; `body` is JSON. Raises what the SDK raises."""
        options = self._turns.get(path)
        if options is None:
            options = self._turns[path] = FinalRequestOptions.construct(
                method="post", url=path, security={"bearer_auth": True}
            )
        options = options.model_copy(update={"content": body, "headers": {**headers, **_AS_IT_COMES}})
        return AsyncResponseContextManager(cast("Awaitable[AsyncAPIResponse[Any]]", self.request(object, options)))

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:
        """A third of what the SDK needs for a turn goes into its headers and its URL, which do not change."""
        body, given = options.content, options.headers
        if not isinstance(body, bytes) or not isinstance(given, Mapping):
            return super()._build_request(options, retries_taken=retries_taken)
        names = (options.url, *given)
        frame = self._frames.get(names)
        if frame is None:
            frame = self._frames[names] = _frame(super()._build_request(options), given)
        headers = [(name.encode(), str(value).encode()) for name, value in given.items()]
        headers.append((b"Content-Length", str(len(body)).encode()))
        request = httpx2.Request(
            options.method,
            frame.url,
            headers=frame.headers + headers,
            stream=httpx2.ByteStream(body),
            extensions=frame.extensions,
        )
        # Who sends it asks for all of its content at once.
        request.read()
        return request


def _frame(built: httpx2.Request, given: Mapping[str, Any]) -> _Frame:
    own = {name.lower().encode() for name in (*given, "content-length", "cookie")}
    headers = [(name, value) for name, value in built.headers.raw if name.lower() not in own]
    return _Frame(built.url, headers, built.extensions)
