"""Request ids, steps, turns and secrets, in any store."""

import asyncio
from typing import Any

import pytest

from contract.samples import ODD_IDS, OTHER, TENANT, MovableClock, add_run, run, step
from famulus.v1.error_reason_pb2 import ErrorReason
from famulus.v1.run_step_pb2 import RunStep, RunStepState
from famulus_server.errors import AlreadyExists, LeaseLost, NotFound
from famulus_server.ports import RequestKey, Store, Turn

DAY = 24 * 3600
KEY = RequestKey("CreateRun", "req-1", b"fingerprint")


async def find(store: Store, key: RequestKey = KEY, *, tenant: str = TENANT) -> str | None:
    return await store.read(lambda tx: tx.requests.find(tenant, key))


async def remember(store: Store, key: RequestKey, resource_id: str, *, tenant: str = TENANT) -> None:
    await store.write(lambda tx: tx.requests.remember(tenant, key, resource_id))


async def put_step(store: Store, made: RunStep) -> None:
    await store.write(lambda tx: tx.steps.put(TENANT, made))


async def get_step(store: Store, tenant: str, run_id: str, step_id: str) -> RunStep:
    return await store.read(lambda tx: tx.steps.get(tenant, run_id, step_id))


async def put_turn(store: Store, turn: Turn) -> None:
    await store.write(lambda tx: tx.turns.put(TENANT, "run_1", turn))


async def test_request_is_remembered_for_24_hours(store: Store, clock: MovableClock) -> None:
    assert await find(store) is None
    await remember(store, KEY, "run_1")
    clock.advance(DAY - 0.000001)
    assert await find(store) == "run_1"
    clock.advance(0.000001)
    assert await find(store) is None


async def test_old_entry_is_replaced(store: Store, clock: MovableClock) -> None:
    await remember(store, KEY, "run_1")
    clock.advance(DAY)
    other = RequestKey(KEY.method, KEY.request_id, b"another")
    await remember(store, other, "run_2")
    assert await find(store, other) == "run_2"
    clock.advance(DAY - 1)
    assert await find(store, other) == "run_2"


async def test_request_id_of_another_request_is_refused(store: Store, clock: MovableClock) -> None:
    await remember(store, KEY, "run_1")
    with pytest.raises(AlreadyExists) as refusal:
        await find(store, RequestKey(KEY.method, KEY.request_id, b"another"))
    assert refusal.value.reason == ErrorReason.ERROR_REASON_REQUEST_ID_REUSED
    clock.advance(DAY)
    assert await find(store, RequestKey(KEY.method, KEY.request_id, b"another")) is None


async def test_young_entry_is_never_replaced(store: Store) -> None:
    await remember(store, KEY, "run_1")
    with pytest.raises(AlreadyExists):
        await remember(store, KEY, "run_2")
    assert await find(store) == "run_1"


async def test_request_ids_count_per_tenant_and_method(store: Store) -> None:
    await remember(store, KEY, "run_1")
    assert await find(store, tenant=OTHER) is None
    assert await find(store, RequestKey("CreateThread", KEY.request_id, KEY.fingerprint)) is None
    await remember(store, KEY, "run_2", tenant=OTHER)
    assert (await find(store), await find(store, tenant=OTHER)) == ("run_1", "run_2")


async def test_old_entries_are_forgotten_in_bounded_batches(store: Store, clock: MovableClock) -> None:
    for number in range(5):
        await remember(store, RequestKey("CreateRun", f"old-{number}", b""), "x")
    clock.advance(DAY)
    await remember(store, KEY, "run_1")
    assert [await store.write(lambda tx: tx.requests.forget_old(2)) for _ in range(4)] == [2, 2, 1, 0]
    assert await find(store) == "run_1"


@pytest.mark.parametrize("odd", ODD_IDS)
async def test_odd_request_ids_are_only_ids(store: Store, odd: str) -> None:
    await remember(store, KEY, "run_1")
    key = RequestKey("CreateRun", odd, b"f")
    assert await find(store, key) is None
    await remember(store, key, "run_2")
    assert (await find(store, key), await find(store)) == ("run_2", "run_1")


async def test_steps_are_kept_by_position_and_changed_in_place(store: Store) -> None:
    await add_run(store, run())
    for position in (2, 1, 3):
        await put_step(store, step(position))
    changed = step(2)
    changed.state = RunStepState.RUN_STEP_STATE_COMPLETED
    await put_step(store, changed)
    assert await store.read(lambda tx: tx.steps.page(TENANT, "run_1")) == [step(1), changed, step(3)]
    after = await store.read(lambda tx: tx.steps.page(TENANT, "run_1", after_position=1, limit=1))
    assert after == [changed]
    assert await store.read(lambda tx: tx.steps.get(TENANT, "run_1", "step_2")) == changed


async def test_step_is_found_under_its_own_run_and_tenant_only(store: Store) -> None:
    await add_run(store, run())
    await add_run(store, run("run_2", thread_id="thread_2"))
    await store.write(lambda tx: tx.steps.put(TENANT, step()))
    for tenant, run_id, step_id in [
        (OTHER, "run_1", "step_1"),
        (TENANT, "run_2", "step_1"),
        (TENANT, "run_1", "step_2"),
    ]:
        with pytest.raises(NotFound):
            await get_step(store, tenant, run_id, step_id)
    assert await store.read(lambda tx: tx.steps.page(OTHER, "run_1")) == []
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.steps.put(OTHER, step()))


async def test_turns_are_kept_by_number_and_changed_in_place(store: Store) -> None:
    await add_run(store, run())
    items: list[dict[str, Any]] = [{"type": "message", "text": "\u2603 \"'", "n": 2**63 - 1, "f": 0.1, "x": None}]
    first = Turn(number=1, seen_sequence=4, items=items)
    second = Turn(number=2, seen_sequence=5, items=[])
    for turn in (second, Turn(number=1, seen_sequence=0, items=[]), first):
        await put_turn(store, turn)
    assert await store.read(lambda tx: tx.turns.all(TENANT, "run_1")) == [first, second]
    assert await store.read(lambda tx: tx.turns.all(OTHER, "run_1")) == []
    assert await store.read(lambda tx: tx.turns.all(TENANT, "run_2")) == []
    with pytest.raises(LeaseLost):
        await store.write(lambda tx: tx.turns.put(OTHER, "run_1", first))


async def test_secret_is_made_once_whoever_asks(store: Store) -> None:
    keys = await asyncio.gather(*(store.write(lambda tx: tx.secrets.obtain("page-tokens")) for _ in range(20)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await store.write(lambda tx: tx.secrets.obtain("other")) != keys[0]
