"""Calls to replicas as a careful client makes them: any replica will do, and while none answers, again."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import grpc

from chaos.journal import Journal
from famulus import FamulusClient, FamulusError, RetryPolicy
from famulus.channels import NO_PROXY, channel_options
from famulus.v1.assistant_service_pb2_grpc import AssistantServiceStub
from famulus.v1.run_service_pb2_grpc import RunServiceStub
from famulus.v1.thread_service_pb2_grpc import ThreadServiceStub

# A frozen replica is left after so many seconds; when nobody answered for as long as the other one, that is a fault.
_DEADLINE = 3.0
_PATIENCE = 40.0
# Without even a heartbeat (the replicas send one each second), a stream counts as broken.
SILENCE = 4.0
_PAUSES = (0.02, 0.3)
# What a caller must never be told.
FAULTS_OF_OURS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,  # it was not the caller who cancelled
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class Calls:
    """One channel to each replica, and our own client over all of them."""

    def __init__(self, addresses: Sequence[str], *, journal: Journal) -> None:
        self._journal = journal
        self._channels = [
            grpc.aio.insecure_channel(address, channel_options(address, [("grpc.use_local_subchannel_pool", 1)]))
            for address in addresses
        ]
        self.client = FamulusClient(
            f"ipv4:{','.join(addresses)}",
            options=list(NO_PROXY.items()),
            retry=RetryPolicy(silence=SILENCE, give_up_after=_PATIENCE),
        )
        self._stubs = [
            (RunServiceStub(channel), ThreadServiceStub(channel), AssistantServiceStub(channel))
            for channel in self._channels
        ]

    async def close(self) -> None:
        """Closes the channels."""
        await self.client.close()
        for channel in self._channels:
            await channel.close()

    def method(self, replica: int, name: str) -> Any:
        """A method of one replica."""
        return next(getattr(stub, name) for stub in self._stubs[replica] if hasattr(stub, name))

    def pick(self, rng: random.Random, *, other_than: int | None = None) -> int:
        """The number of a replica."""
        return rng.choice([number for number in range(len(self._stubs)) if number != other_than])

    async def send(self, name: str, request: Any, rng: random.Random, *, first: int | None = None) -> Any:
        """The answer of some replica, the `first` one if it can. Raises FamulusError for a refusal that stands."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _PATIENCE
        replica = self.pick(rng) if first is None else first
        while True:
            try:
                return await self.method(replica, name)(request, timeout=_DEADLINE)
            except grpc.RpcError as raised:
                error = self.judge(FamulusError.from_rpc(raised), name)
                if loop.time() > give_up:
                    self._journal.violate("nobody answers", name, f"for {_PATIENCE:g} s: {error}")
                    raise error from None
            replica = self.pick(rng, other_than=replica)
            await asyncio.sleep(max(rng.uniform(*_PAUSES), min(error.retry_after or 0, 0.5)))

    def judge(self, error: FamulusError, name: str) -> FamulusError:
        """The error, if another attempt may help; otherwise raises it."""
        if error.transient or error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            if error.reason_name and error.code is grpc.StatusCode.UNAVAILABLE and error.retry_after is None:
                self._journal.violate("UNAVAILABLE without RetryInfo", name, str(error))
            self._journal.counts["repeated calls"] += 1
            return error
        if error.code in FAULTS_OF_OURS:
            self._journal.violate("a refusal that is a fault of ours", f"{name} {error.reason_name}", str(error))
        raise error
