"""Unary calls that are safe to repeat, repeated while the service cannot be reached."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from famulus.errors import FamulusError
from famulus.retry import Outage, RetryPolicy

Request = TypeVar("Request")
Response = TypeVar("Response")


async def send(
    method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    *,
    policy: RetryPolicy,
    timeout: float | None = None,
) -> Response:
    """Calls until there is an answer; `timeout` is the deadline of each attempt, in seconds. Raises FamulusError."""
    outage = Outage(policy)
    while True:
        try:
            return await method(request, timeout=timeout)
        except grpc.RpcError as error:
            delay = outage.delay(FamulusError.from_rpc(error))
        await asyncio.sleep(delay)


def send_blocking(
    method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
    request: Request,
    *,
    policy: RetryPolicy,
    timeout: float | None = None,
    pause: Callable[[float], object] = time.sleep,
) -> Response:
    """The same for threads. `pause` waits for some seconds; it may raise to end the attempts."""
    outage = Outage(policy)
    while True:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            delay = outage.delay(FamulusError.from_rpc(error))
        pause(delay)
