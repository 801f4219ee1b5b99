"""What the conformance suites store: small, valid resources, and a clock that stands until it is moved."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message, MessagePart, MessageRole, TextPart
from famulus.v1.run_pb2 import Run, RunState
from famulus.v1.run_step_pb2 import MessageCreation, RunStep
from famulus.v1.thread_pb2 import Thread
from famulus_server.ports import Claimed, Lease, Store, Transaction

TENANT = "acme"
OTHER = "globex"
START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

# Callers choose some of these; none of them may mean anything to a database.
ODD_IDS = ["", "' or 1=1 --", "../x", "*", "%00", "{tag}", "$1", '"', "\u2603" * 10, "x" * 10_000]


class MovableClock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self._now = START

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


def assistant(assistant_id: str = "asst_1", *, seconds: int = 0, name: str = "", model: str = "m") -> Assistant:
    made = Assistant(id=assistant_id, name=name, model=model)
    made.create_time.FromDatetime(START + timedelta(seconds=seconds))
    return made


def thread(
    thread_id: str = "thread_1", *, seconds: int = 0, user: str = "", metadata: dict[str, str] | None = None
) -> Thread:
    made = Thread(id=thread_id, user_id=user, metadata=metadata or {}, title="t")
    made.create_time.FromDatetime(START)
    made.last_activity_time.FromDatetime(START + timedelta(seconds=seconds))
    return made


def message(message_id: str, *, text: str = "", run_id: str = "") -> Message:
    part = MessagePart(text=TextPart(text=text or message_id))
    return Message(id=message_id, role=MessageRole.MESSAGE_ROLE_USER, content=[part], run_id=run_id)


def run(
    run_id: str = "run_1",
    *,
    thread_id: str = "thread_1",
    assistant_id: str = "asst_1",
    state: "RunState.ValueType" = RunState.RUN_STATE_QUEUED,
    seconds: int = 0,
    attempt: int = 0,
    lives: int | None = 600,
) -> Run:
    made = Run(id=run_id, thread_id=thread_id, assistant_id=assistant_id, state=state, attempt=attempt, model="m")
    made.create_time.FromDatetime(START + timedelta(seconds=seconds))
    if lives is not None:
        made.expire_time.FromDatetime(START + timedelta(seconds=seconds + lives))
    return made


def step(position: int = 1, *, run_id: str = "run_1", step_id: str = "") -> RunStep:
    made = MessageCreation(message_id="msg_1")
    return RunStep(id=step_id or f"step_{position}", run_id=run_id, position=position, message_creation=made)


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.content[0].text.text for message in messages]


async def add_thread(store: Store, thread_id: str, *texts: str, tenant: str = TENANT) -> None:
    """A thread with messages whose ids are their texts."""
    await store.write(lambda tx: tx.threads.insert(tenant, thread(thread_id)))
    await add_messages(store, thread_id, *texts, tenant=tenant)


async def add_messages(store: Store, thread_id: str, *texts: str, tenant: str = TENANT) -> None:
    if texts:
        await store.write(lambda tx: tx.messages.append(tenant, thread_id, [message(text) for text in texts]))


async def read_texts(store: Store, thread_id: str, *, tenant: str = TENANT) -> list[str]:
    return texts(await store.read(lambda tx: tx.messages.page(tenant, thread_id, limit=1_000)))


async def add_run(store: Store, made: Run, *, tenant: str = TENANT) -> None:
    await store.write(lambda tx: tx.runs.insert(tenant, made, lease=None))


async def claim_runs(store: Store, lease: Lease, *, limit: int = 10) -> list[Claimed]:
    """What a worker gets that is alone: abandoned runs first, then those that wait, one tenant after the other."""

    async def unit(tx: Transaction) -> list[Claimed]:
        taken_over = await tx.runs.take_over(lease, limit=limit)
        shares, left = {}, limit - len(taken_over)
        for tenant, number in (await tx.runs.queue(first="", limit=limit)).waiting.items():
            shares[tenant] = min(number, left)
            left -= shares[tenant]
        return taken_over + await tx.runs.claim(lease, shares)

    return await store.write(unit)
