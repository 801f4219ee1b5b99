"""When the time of a thread is over, and who sweeps it away."""

import asyncio
from datetime import timedelta

import pytest

from contract.samples import OTHER, START, TENANT, MovableClock, add_messages, add_run, run, thread
from famulus.v1.run_pb2 import RunState
from famulus.v1.thread_pb2 import Retention as Own
from famulus.v1.thread_pb2 import Thread
from famulus_server.engine.policy import Policies, Policy, Retention, Tier
from famulus_server.engine.retention import Sweeper, expire_time, lifetimes, show
from famulus_server.errors import NotFound
from famulus_server.ports import Store, Transaction
from famulus_server.store.errors import BodyUnreadable
from famulus_server.store.sqlite import SqliteStore
from unit.engine.alone import aftermath

DAY = 86_400.0


def own(*, created: float | None = None, active: float | None = None) -> Own:
    """What a thread says itself, in days."""
    made = Own()
    if created is not None:
        made.after_create.FromTimedelta(timedelta(days=created))
    if active is not None:
        made.after_last_activity.FromTimedelta(timedelta(days=active))
    return made


@pytest.mark.parametrize(
    ("says", "rules", "days"),
    [
        (own(), Retention(), None),
        (own(created=3), Retention(), 3),
        (own(active=3), Retention(), 4),
        (own(created=3, active=3), Retention(), 3),
        (own(created=9, active=3), Retention(), 4),
        (own(), Retention(after_create_days=5), 5),
        (own(), Retention(after_last_activity_days=5), 6),
        (own(created=7), Retention(after_create_days=5), 7),
        (own(active=7), Retention(after_last_activity_days=5), 8),
        (own(active=7), Retention(after_create_days=5), 5),
        (own(created=7), Retention(max_after_create_days=5), 5),
        (own(), Retention(max_after_create_days=5, after_create_days=9), 5),
        (own(), Retention(max_after_create_days=0.5), 0.5),
    ],
)
def test_time_of_a_thread_is_over_at_the_first_of_its_ends(says: Own, rules: Retention, days: float | None) -> None:
    # Active a day after it was created.
    made = thread(seconds=int(DAY))
    made.retention.CopyFrom(says)
    ends = expire_time(made, lifetimes(rules))
    assert ends == (None if days is None else START + timedelta(days=days))
    assert show(made, rules).HasField("expire_time") == (days is not None)


def sweeper(store: Store, clock: MovableClock, **retention: Retention) -> Sweeper:
    """Each tenant has a tier of its own."""
    tiers = {"default": Tier()} | {tenant: Tier(retention=rules) for tenant, rules in retention.items()}
    policies = Policies(Policy(tiers=tiers, tenants={tenant: tenant for tenant in retention}))
    return Sweeper(store=store, aftermath=aftermath(store), policies=policies, clock=clock, tombstone_days=30)


async def add(store: Store, *thread_ids: str, tenant: str = TENANT, **says: Own) -> None:
    for thread_id in thread_ids:
        made = thread(thread_id)
        if "retention" in says:
            made.retention.CopyFrom(says["retention"])
        await store.write(lambda tx, made=made: tx.threads.insert(tenant, made))  # type: ignore[misc]


async def is_there(store: Store, thread_id: str, tenant: str = TENANT) -> bool:
    try:
        read: Thread = await store.read(lambda tx: tx.threads.get(tenant, thread_id))
    except NotFound:
        return False
    return read.id == thread_id


async def test_sweep_takes_each_tenants_threads_by_its_own_rules(store: SqliteStore, clock: MovableClock) -> None:
    for tenant in (TENANT, OTHER, "initech"):
        await add(store, "a", tenant=tenant)
        await add(store, "b", tenant=tenant, retention=own(created=2))
    made = sweeper(store, clock, acme=Retention(after_create_days=1), globex=Retention(max_after_create_days=1))
    await made.sweep()
    assert made.threads == 0
    clock.advance(DAY)
    await made.sweep()
    left = [
        (tenant, name)
        for tenant in (TENANT, OTHER, "initech")
        for name in ("a", "b")
        if await is_there(store, name, tenant)
    ]
    assert left == [(TENANT, "b"), ("initech", "a"), ("initech", "b")]
    clock.advance(DAY)
    await made.sweep()
    assert made.threads == 5
    assert await is_there(store, "a", "initech")


async def test_sweep_leaves_a_thread_to_its_active_run(store: SqliteStore, clock: MovableClock) -> None:
    await add(store, "a", retention=own(created=1))
    active = run("run_1", thread_id="a", lives=None)
    await add_run(store, active)
    clock.advance(9 * DAY)
    made = sweeper(store, clock)
    await made.sweep()
    assert await is_there(store, "a")
    active.state = RunState.RUN_STATE_COMPLETED
    await store.write(lambda tx: tx.runs.replace(TENANT, active, attempt=0))
    await made.sweep()
    assert not await is_there(store, "a")


async def test_sweep_takes_more_than_a_batch_whoever_else_sweeps(store: SqliteStore, clock: MovableClock) -> None:
    await add(store, *(f"t{number:03}" for number in range(250)))
    await add_messages(store, "t000", "a")
    clock.advance(DAY)
    several = [sweeper(store, clock, acme=Retention(after_create_days=1)) for _ in range(3)]
    await asyncio.gather(*(one.sweep() for one in several))
    assert sum(one.threads for one in several) == 250
    assert await store.read(lambda tx: tx.threads.tenants(after="", limit=9)) == []


async def test_activity_between_look_and_deletion_saves_a_thread(store: SqliteStore, clock: MovableClock) -> None:
    await add(store, "a", "b", retention=own(active=1))
    clock.advance(DAY)

    class Touching:
        """Somebody is active on a thread right after the sweep has found it."""

        read = store.read

        async def write(self, unit: object) -> object:
            await store.write(lambda tx: tx.threads.touch(TENANT, "b", clock.now()))
            return await store.write(unit)  # type: ignore[arg-type]

    made = sweeper(Touching(), clock)  # type: ignore[arg-type]
    await made.sweep()
    assert not await is_there(store, "a")
    assert await is_there(store, "b")


async def test_thread_that_cannot_be_read_keeps_no_other_from_being_swept(
    store: SqliteStore, clock: MovableClock, capsys: pytest.CaptureFixture[str]
) -> None:
    await add(store, "a", "b", retention=own(created=1))
    await add(store, "c", tenant=OTHER, retention=own(created=1))
    clock.advance(DAY)

    class Damaged:
        """The first look at a thread finds what it cannot open."""

        read = store.read
        damaged = True

        async def write(self, unit: object) -> object:
            if self.damaged:
                self.damaged = False
                raise BodyUnreadable("threads ('a',) of tenant 'acme' cannot be opened: its key is gone")
            return await store.write(unit)  # type: ignore[arg-type]

    made = sweeper(Damaged(), clock)  # type: ignore[arg-type]
    await made.sweep()
    assert made.threads == 2
    assert await is_there(store, "a")
    assert not await is_there(store, "c", OTHER)
    assert "thread not swept" in capsys.readouterr().out


async def test_new_policy_holds_at_the_next_sweep(store: SqliteStore, clock: MovableClock) -> None:
    await add(store, "a")
    clock.advance(9 * DAY)
    policies = Policies()
    made = Sweeper(store=store, aftermath=aftermath(store), policies=policies, clock=clock, tombstone_days=30)
    await made.sweep()
    assert await is_there(store, "a")
    policies.current = Policy(tiers={"default": Tier(retention=Retention(after_last_activity_days=1))})
    await made.sweep()
    assert not await is_there(store, "a")


async def test_sweep_without_rules_costs_the_same_for_any_number_of_tenants(
    store: SqliteStore, clock: MovableClock
) -> None:
    async def unit(tx: Transaction) -> None:
        for number in range(1_000):
            await tx.threads.insert(f"tenant{number}", thread("a"))

    async def cost() -> int:
        before = store.stats.statements
        await made.sweep()
        return store.stats.statements - before

    made = sweeper(store, clock, other=Retention(), another=Retention())
    few = await cost()
    await store.write(unit)
    assert await cost() == few
    # A look at the one that has rules.
    made = sweeper(store, clock, acme=Retention(after_create_days=1))
    assert await cost() == few + 1


async def test_rules_of_the_default_tier_hold_for_tenants_that_nobody_has_named(
    store: SqliteStore, clock: MovableClock
) -> None:
    for tenant in (TENANT, OTHER):
        await add(store, "a", tenant=tenant)
    tiers = {"default": Tier(retention=Retention(after_create_days=1)), "kept": Tier()}
    policies = Policies(Policy(tiers=tiers, tenants={OTHER: "kept"}))
    clock.advance(DAY)
    await Sweeper(store=store, aftermath=aftermath(store), policies=policies, clock=clock, tombstone_days=30).sweep()
    assert not await is_there(store, "a")
    assert await is_there(store, "a", OTHER)


async def test_tombstones_go_after_their_time(store: SqliteStore, clock: MovableClock) -> None:
    await add(store, *(f"t{number:03}" for number in range(120)), retention=own(created=1))
    clock.advance(DAY)
    made = sweeper(store, clock)
    await made.sweep()
    assert (made.threads, made.tombstones) == (120, 0)
    clock.advance(30 * DAY)
    await made.sweep()
    assert made.tombstones == 120
