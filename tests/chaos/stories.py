"""What users do, as stories: each ends when its runs have ended and somebody has seen it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from chaos.actor import REJECT, Actor
from chaos.journal import KnownThread
from chaos.script import TRUNCATIONS
from famulus.v1.run_event_pb2 import RunEvent
from famulus.v1.run_pb2 import Run
from famulus.v1.run_service_pb2 import BusyPolicy

ENQUEUE = BusyPolicy.BUSY_POLICY_ENQUEUE
INTERRUPT = BusyPolicy.BUSY_POLICY_INTERRUPT
ROLLBACK = BusyPolicy.BUSY_POLICY_ROLLBACK


@dataclass(slots=True)
class Square:
    """Threads on which users meet."""

    threads: list[KnownThread] = field(default_factory=list)


Story = Callable[[Actor, Square], Awaitable[None]]


async def solo(actor: Actor, _: Square) -> None:
    """A run, watched by two who do not keep still."""
    kind = actor.rng.choice(("swift", "steady", "steady", "slow", "flaky", "flaky"))
    run = await actor.start(actor.wish(kind))
    if run is not None:
        await asyncio.gather(actor.look(run), actor.watch(run, cuts=0.2), actor.watch(run))


async def unhurried(actor: Actor, _: Square) -> None:
    """A run that takes longer than a lease, so that somebody takes over whenever its worker is frozen."""
    run = await actor.start(actor.wish("slow"))
    if run is not None:
        await asyncio.gather(actor.watch(run), actor.watch(run, cuts=0.02))


async def streamed(actor: Actor, _: Square) -> None:
    """Start-or-resume by the request id alone."""
    await actor.stream(actor.wish(actor.rng.choice(("swift", "steady", "flaky"))), cuts=0.2)


async def truncated(actor: Actor, _: Square) -> None:
    """The model never gets to its end."""
    run = await actor.start(actor.wish("truncated-" + actor.rng.choice(TRUNCATIONS)))
    if run is not None:
        await actor.watch(run, cuts=0.05)


async def twins(actor: Actor, _: Square) -> None:
    """Equal requests at several replicas at once are one run."""
    request = actor.wish(actor.rng.choice(("swift", "steady")))
    runs = await asyncio.gather(*(actor.start(request, first=number % 3) for number in range(5)))
    actor.check_one(request.request_id, {run.id for run in runs if run is not None})
    await asyncio.gather(*(actor.watch(run, cuts=0.1) for run in runs[:2] if run is not None))


async def tools(actor: Actor, _: Square) -> None:
    """Function calls, answered once or from two replicas at once."""
    run = await actor.start(actor.wish(actor.rng.choice(("weather", "weather time"))))
    if run is None:
        return
    viewing = await actor.watch(run, cuts=0.1, until=_asks)
    waiting = next((event for event in map(_state, viewing.events) if event.required_action.tool_calls), None)
    if waiting is None:
        return
    calls = [call.id for call in waiting.required_action.tool_calls]
    run.outputs = {call_id: f"{actor.name}/{number}" for number, call_id in enumerate(calls)}
    times = actor.rng.choice((1, 2, 2))
    await asyncio.gather(
        actor.watch(run, viewing, cuts=0.1),
        *(actor.submit(run, list(run.outputs.items()), first=actor.pick()) for _ in range(times)),
    )


async def conversed(actor: Actor, _: Square) -> None:
    """A run through our own client, with tools or without."""
    kind = actor.rng.choice(("swift", "steady", "weather", "weather time"))
    names = [name for name in ("get_weather", "get_time") if name.removeprefix("get_") in kind.split()]
    await actor.converse(actor.wish(kind), {name: f"{actor.name}/{name}" for name in names})


async def forked(actor: Actor, _: Square) -> None:
    """A thread that goes two ways: asked for three times at once, there is one fork. The run before it is rated."""
    run = await actor.start(actor.wish("swift"))
    if run is None:
        return
    await actor.watch(run)
    token = actor.token()
    *forks, _rated = await asyncio.gather(*(actor.fork(actor.thread_of(run), token) for _ in range(3)), actor.rate(run))
    actor.check_one(token, {fork.id for fork in forks if fork is not None})
    for fork in forks[:1]:
        following = await actor.start(actor.wish("swift", fork))
        if following is not None:
            await actor.watch(following)


async def cancelled(actor: Actor, _: Square) -> None:
    """A cancel, sometimes two at once, that races the run's own end."""
    kind = actor.rng.choice(("swift", "steady", "slow", "weather"))
    run = await actor.start(actor.wish(kind))
    if run is None:
        return
    watching = asyncio.gather(actor.watch(run), actor.watch(run, cuts=0.2))
    await asyncio.sleep(actor.rng.uniform(0, 1.2))
    await asyncio.gather(*(actor.cancel(run) for _ in range(actor.rng.randint(1, 3))))
    await watching


async def deleted(actor: Actor, _: Square) -> None:
    """The thread goes while a run is at work on it."""
    run = await actor.start(actor.wish(actor.rng.choice(("steady", "slow", "weather"))))
    if run is None:
        return
    thread = actor.thread_of(run)
    watching = asyncio.gather(actor.watch(run), actor.watch(run, cuts=0.2))
    await asyncio.sleep(actor.rng.uniform(0, 1.0))
    line = actor.start(actor.wish("swift", thread, ENQUEUE)) if actor.rng.random() < 0.3 else _nothing()
    await asyncio.gather(line, actor.delete(thread))
    await watching
    await actor.check_gone(run)


async def crowd(actor: Actor, _: Square) -> None:
    """Several runs at once on a thread of our own, by the same policy or by different ones."""
    thread = await actor.open_thread()
    policies = [actor.rng.choice((REJECT, ENQUEUE, ENQUEUE, INTERRUPT, ROLLBACK)) for _ in range(4)]
    if actor.rng.random() < 0.3:
        policies = [REJECT] * 4
    await asyncio.gather(*(_join(actor, thread, policy) for policy in policies))


async def square(actor: Actor, met: Square) -> None:
    """A run on a thread that other users have runs on, too."""
    if len(met.threads) < 3:
        thread = await actor.open_thread()
        met.threads.append(thread)
    else:
        thread = actor.rng.choice(met.threads)
    await _join(actor, thread, actor.rng.choice((REJECT, ENQUEUE, ENQUEUE, INTERRUPT, ROLLBACK)))


async def chatter(actor: Actor, _: Square) -> None:
    """Messages that come in while a run is at work."""
    thread = await actor.open_thread()
    run = await actor.start(actor.wish("steady", thread))
    says = [actor.say(thread, f"swift {actor.name} says {number}") for number in range(4)]
    if run is None:
        await asyncio.gather(*says)
    else:
        await asyncio.gather(actor.watch(run, cuts=0.1), *says)


async def patient(actor: Actor, _: Square) -> None:
    """A long answer, read slowly by one, as fast as it comes by another."""
    run = await actor.start(actor.wish("long"))
    if run is not None:
        await asyncio.gather(actor.watch(run, pause=0.02), actor.watch(run, cuts=0.02))


STORIES: Mapping[str, Story] = {
    story.__name__: story
    for story in (
        solo,
        unhurried,
        streamed,
        truncated,
        twins,
        tools,
        conversed,
        forked,
        cancelled,
        deleted,
        crowd,
        square,
        chatter,
        patient,
    )
}
EVERYTHING: Mapping[str, float] = {
    "solo": 5,
    "unhurried": 1,
    "streamed": 3,
    "truncated": 1,
    "twins": 2,
    "tools": 3,
    "conversed": 3,
    "forked": 1,
    "cancelled": 2,
    "deleted": 2,
    "crowd": 1.5,
    "square": 2,
    "chatter": 1,
    "patient": 0.5,
}


async def _join(actor: Actor, thread: KnownThread, policy: "BusyPolicy.ValueType") -> None:
    await asyncio.sleep(actor.rng.uniform(0, 0.2))
    if policy in (INTERRUPT, ROLLBACK):
        thread.disturbed = True
    run = await actor.start(actor.wish(actor.rng.choice(("swift", "steady")), thread, policy))
    if run is not None:
        await actor.watch(run, cuts=0.1)


async def _nothing() -> None:
    return


def _asks(event: RunEvent) -> bool:
    return bool(_state(event).required_action.tool_calls)


def _state(event: RunEvent) -> Run:
    return event.snapshot.run if event.HasField("snapshot") else event.run_state_changed.run
