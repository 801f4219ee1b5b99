"""Runs that wait in line behind the active one of their thread (contract 6).

A run in line is QUEUED, and nobody's to claim; the messages that it brings wait with it. Whatever ends the active run
lets the first in line begin, in the same transaction.
"""

from datetime import datetime

from famulus.v1.run_pb2 import Run
from famulus_server.ports import Transaction

# The place of a run that interrupted another: before all that merely wait, whose place is their time.
FIRST = 0


def place(now: datetime) -> int:
    """The place of a run that comes now: behind all that came before."""
    return int(now.timestamp() * 1_000_000)


async def advance(tx: Transaction, tenant: str, ended: Run, *, others_wait: bool) -> bool:
    """A run of a thread has ended: takes away what it wrote if it was rolled back, and lets the next one begin; whether
    one does."""
    if ended.rolled_back:
        await _remove_messages(tx, tenant, ended)
    if not others_wait:
        return False
    following = await tx.runs.promote(tenant, ended.thread_id)
    if following is None:
        return False
    messages = await tx.runs.take_messages(tenant, following.id)
    if messages:
        await tx.messages.append(tenant, following.thread_id, messages)
    return True


async def _remove_messages(tx: Transaction, tenant: str, run: Run) -> None:
    while written := await tx.messages.page(tenant, run.thread_id, run_id=run.id, limit=1_000):
        for message in written:
            await tx.messages.delete(tenant, run.thread_id, message.id)
