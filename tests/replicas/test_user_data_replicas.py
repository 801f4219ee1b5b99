"""A user's data deleted through any of several replicas."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import pytest_asyncio

from famulus.v1.thread_pb2 import Thread
from famulus.v1.user_data_service_pb2 import (
    DeleteUserDataRequest,
    DeletionReceipt,
    DeletionState,
    GetDeletionReceiptRequest,
)
from famulus.v1.user_data_service_pb2_grpc import UserDataServiceStub
from famulus_server.embedded.upstream import Scene
from replicas.conftest import OpenReplica
from run_stage import Stage, refused

if TYPE_CHECKING:
    from famulus.v1.user_data_service_pb2_grpc import UserDataServiceAsyncStub


@pytest_asyncio.fixture
async def pair(open_replica: OpenReplica) -> AsyncIterator[tuple[Stage, Stage]]:
    async with open_replica() as here, open_replica() as there:
        yield here, there


async def stub_on(stage: Stage, stack: AsyncExitStack) -> "UserDataServiceAsyncStub":
    return UserDataServiceStub(await stack.enter_async_context(grpc.aio.insecure_channel(stage.address)))


async def test_run_at_work_elsewhere_is_stopped_and_its_watchers_are_told(pair: tuple[Stage, Stage]) -> None:
    here, there = pair
    here.play(Scene(deltas=20, hold_after=10))
    run = await here.start(new_thread=Thread(user_id="ann"))
    await here.until(run.id, "text_delta")
    watching = [asyncio.create_task(refused(stage.watch(run.id))) for stage in pair]
    await asyncio.gather(*(stage.until(run.id, "text_delta") for stage in pair))
    async with AsyncExitStack() as stack:
        user_data = await stub_on(there, stack)
        receipt = (await user_data.DeleteUserData(DeleteUserDataRequest(user_id="ann"))).receipt
        elsewhere = await (await stub_on(here, stack)).GetDeletionReceipt(
            GetDeletionReceiptRequest(receipt_id=receipt.id)
        )
    assert receipt.state == DeletionState.DELETION_STATE_COMPLETED
    assert elsewhere.receipt == receipt
    assert [told.reason for told in await asyncio.gather(*watching)] == ["THREAD_DELETED"] * 2
    assert (await here.request_ended()).outcome == "disconnected"


async def test_calls_at_once_on_all_replicas_delete_everything_once(pair: tuple[Stage, Stage]) -> None:
    for _ in range(60):
        await pair[0].thread("a", "b", user_id="ann")
    async with AsyncExitStack() as stack:
        stubs = [await stub_on(stage, stack) for stage in pair for _ in range(3)]
        request = DeleteUserDataRequest(user_id="ann")
        answers = await asyncio.gather(*(stub.DeleteUserData(request) for stub in stubs))
    receipts: dict[str, DeletionReceipt] = {answer.receipt.id: answer.receipt for answer in answers}
    assert {receipt.state for receipt in receipts.values()} == {DeletionState.DELETION_STATE_COMPLETED}
    # Calls that came after the end of the first deletion began another one, of nothing.
    assert sum(receipt.counts.threads for receipt in receipts.values()) == 60
    assert sum(receipt.counts.messages for receipt in receipts.values()) == 120
