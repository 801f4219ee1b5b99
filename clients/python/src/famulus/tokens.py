"""Bearer tokens: where they come from, and how calls get them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import grpc

# Or what gives one, where tokens run out before the client does.
Token: TypeAlias = str | Callable[[], str]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


class NoToken(grpc.RpcError):
    """A source of tokens failed; its exception is the cause. UNAVAILABLE, as gRPC has it where it asks the source: a
    moment later that may do better."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return str(self)

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Bearer:
    """What calls show of a token. Raises ValueError for a text that cannot be one."""

    def __init__(self, token: Token) -> None:
        self._token = token
        if isinstance(token, str):
            _metadata(token)

    def metadata(self) -> Metadata:
        """The metadata of the next call. Asks the source, which may take its time. Raises NoToken where that fails."""
        try:
            return _metadata(self._token if isinstance(self._token, str) else self._token())
        except Exception as error:
            raise NoToken(f"there is no token: {type(error).__name__}: {error}") from error

    def added_to(self, metadata: Any) -> Any:
        """The metadata of a call, and the token."""
        return (*(metadata or ()), *self.metadata())


class CallCredentials(grpc.AuthMetadataPlugin):
    """A bearer as gRPC asks for it, before each call and from threads of its own: on channels that it thinks safe."""

    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer

    def __call__(self, _: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            metadata = self._bearer.metadata()
        except NoToken as error:
            callback((), error)  # it ends the call and nothing else
        else:
            callback(metadata, None)


def in_plaintext(bearer: Bearer | None) -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors that add the token for asyncio, on channels whose calls gRPC gives no credentials. Nothing else can
    wait for a thread before a call is made."""
    return () if bearer is None else (_BeforeAnswers(bearer), _BeforeStreams(bearer))


class _Before:
    def __init__(self, bearer: Bearer) -> None:
        self._bearer = bearer

    async def _shown(self, details: Any) -> Any:
        return details._replace(
            metadata=grpc.aio.Metadata(*await asyncio.to_thread(self._bearer.added_to, details.metadata))
        )


class _BeforeAnswers(_Before, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._shown(client_call_details), request)


class _BeforeStreams(_Before, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(await self._shown(client_call_details), request)


def _metadata(token: str) -> Metadata:
    token = token.strip()  # files end with a newline
    # Of what RFC 6750 allows, no more: no text of an error should hold the token.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is empty, or not all of printable ASCII")
    return (("authorization", f"Bearer {token}"),)
