"""What callers may use, and what they are told where that is used up (contract 26)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.limiter_stage import until
from famulus.v1.run_pb2 import RunErrorCode, RunState
from famulus.v1.run_service_pb2 import BusyPolicy, ListRunsRequest
from famulus.v1.thread_service_pb2 import DeleteThreadRequest
from famulus_server.coordination.limiter import RedisLimiter
from famulus_server.embedded.upstream import Fault, Scene, ScriptedUpstream, Usage
from famulus_server.engine.policy import DEFAULT_TIER, CallerQuotas, Policy, Quota, Route, Tier, Variant
from famulus_server.wiring import server as wiring
from run_stage import Stage, open_stage, refused, stage_settings
from serving import Refusal

pytestmark = pytest.mark.usefixtures("unhurried")

HELD = Scene(deltas=6, hold_after=3)


@asynccontextmanager
async def stage_with(
    tmp_path: Path,
    *,
    quotas: dict[str, Quota] | None = None,
    routes: Sequence[Route] = (),
    worker: dict[str, Any] | None = None,
    **limits: Quota,
) -> AsyncIterator[Stage]:
    """A server whose callers have these limits, and its models these quotas. Its limits are counted in Redis from the
    first run on: places taken before are not known there."""
    policy = Policy(
        tiers={DEFAULT_TIER: Tier(limits=CallerQuotas(**limits))},
        quotas=quotas or {},
        routes={route.name: route for route in routes},
    )
    limiters: list[RedisLimiter] = []

    def make(**given: Any) -> RedisLimiter:
        limiters.append(RedisLimiter(**given))
        return limiters[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "RedisLimiter", make)
        async with (
            ScriptedUpstream() as upstream,
            open_stage(stage_settings(tmp_path, upstream.base_url, policy=policy, worker=worker), upstream) as stage,
        ):
            await until(lambda: limiters[0].is_shared)
            yield stage


def check_told(refusal: Refusal, limit: str, subject: str) -> float:
    """Which limit it is, and for how many seconds."""
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refusal.metadata["limit"] == limit
    quota: Any = refusal.details["QuotaFailure"]
    assert [violation.subject for violation in quota.violations] == [subject]
    retry: Any = refusal.details["RetryInfo"]
    seconds = float(retry.retry_delay.ToTimedelta().total_seconds())
    assert seconds > 0
    return seconds


async def test_runs_at_a_time_are_limited_and_their_places_are_given_back(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(concurrent_runs=2)) as stage:
        stage.play(HELD)
        first, second = await stage.start(), await stage.start()
        refusal = await refused(stage.start())
        check_told(refusal, "tenant.concurrent_runs", "tenant:default")
        await stage.request(2)
        for request in stage.upstream.requests:
            request.released.set()
        assert (await stage.tell(first.id)).run.state == RunState.RUN_STATE_COMPLETED
        await stage.tell(second.id)
        stage.play(Scene(text="fine"))
        assert (await stage.play_out()).text == "fine"


async def test_place_is_given_back_by_a_cancel_and_by_a_run_that_never_was(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(concurrent_runs=1)) as stage:
        stage.play(HELD, HELD)
        run = await stage.start()
        await stage.cancel(run.id)
        await stage.tell(run.id)
        assert (await refused(stage.start(model="no such"))).reason == "UNKNOWN_MODEL"
        await stage.start()


async def test_places_are_given_back_by_the_deletion_of_a_thread(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(concurrent_runs=2)) as stage:
        stage.play(HELD)
        run = await stage.start()
        await stage.start(thread_id=run.thread_id, busy_policy=BusyPolicy.BUSY_POLICY_ENQUEUE)
        check_told(await refused(stage.start()), "tenant.concurrent_runs", "tenant:default")
        await stage.threads.DeleteThread(DeleteThreadRequest(thread_id=run.thread_id))
        for _ in range(2):
            await stage.start()
        check_told(await refused(stage.start()), "tenant.concurrent_runs", "tenant:default")


@pytest.mark.parametrize("policy", [BusyPolicy.BUSY_POLICY_INTERRUPT, BusyPolicy.BUSY_POLICY_ROLLBACK])
async def test_run_is_not_refused_because_of_the_one_that_it_replaces(
    tmp_path: Path, policy: "BusyPolicy.ValueType"
) -> None:
    async with stage_with(tmp_path, user=Quota(concurrent_runs=1)) as stage:
        stage.play(HELD)
        thread, other = [await stage.thread(user_id="me") for _ in range(2)]
        runs = [await stage.start(thread_id=thread.id)]
        await stage.request()
        # The third may come while the second still waits for the end of the first.
        runs += [await stage.start(thread_id=thread.id, busy_policy=policy) for _ in range(2)]
        for run in runs[:2]:
            assert (await stage.wait(run.id)).state == RunState.RUN_STATE_CANCELLED
        # The one that is left has the only place.
        for thread_id in (thread.id, other.id):
            enqueued = stage.start(thread_id=thread_id, busy_policy=BusyPolicy.BUSY_POLICY_ENQUEUE)
            check_told(await refused(enqueued), "user.concurrent_runs", "user:default/me")
        await stage.cancel(runs[2].id)
        await stage.wait(runs[2].id)
        await stage.start(thread_id=other.id)


async def test_run_takes_no_place_of_an_assistant_that_the_one_it_replaces_does_not_have(tmp_path: Path) -> None:
    async with stage_with(tmp_path, assistant=Quota(concurrent_runs=1)) as stage:
        stage.play(HELD)
        busy = await stage.assistant(name="busy")
        await stage.start(assistant_id=busy.id)
        run = await stage.start()
        interrupting = stage.start(
            thread_id=run.thread_id, assistant_id=busy.id, busy_policy=BusyPolicy.BUSY_POLICY_INTERRUPT
        )
        check_told(await refused(interrupting), "assistant.concurrent_runs", f"assistant:default/{busy.id}")


async def test_requests_per_minute_are_limited_and_the_told_wait_is_enough(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(requests_per_minute=30, burst_seconds=8)) as stage:
        stage.play(Scene(text="fine"))
        runs = [await stage.start() for _ in range(4)]
        refusal = await refused(stage.start())
        await asyncio.sleep(check_told(refusal, "tenant.requests_per_minute", "tenant:default"))
        runs.append(await stage.start())
        for run in runs:
            await stage.tell(run.id)
        listed = await stage.runs.ListRuns(ListRunsRequest())
        assert len(listed.runs) == 5


async def test_user_and_assistant_have_limits_of_their_own(tmp_path: Path) -> None:
    one = Quota(requests_per_minute=1)
    async with stage_with(tmp_path, user=one) as stage:
        stage.play(Scene(text="fine"))
        mine, other, nobodys = [await stage.thread(user_id=user) for user in ("me", "you", "")]
        for thread in (mine, other, nobodys, nobodys):
            await stage.play_out(thread_id=thread.id)
        check_told(await refused(stage.start(thread_id=mine.id)), "user.requests_per_minute", "user:default/me")


async def test_same_request_gets_its_run_although_the_limit_is_reached(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(requests_per_minute=1, concurrent_runs=1)) as stage:
        stage.play(HELD)
        create = await stage.wanted(request_id="once")
        first = (await stage.runs.CreateRun(create)).run
        assert (await stage.runs.CreateRun(create)).run.id == first.id
        assert (await refused(stage.start())).reason == "RATE_LIMITED"


async def test_equal_requests_at_once_get_one_run_although_it_takes_the_last_place(tmp_path: Path) -> None:
    async with stage_with(tmp_path, tenant=Quota(concurrent_runs=1)) as stage:
        stage.play(HELD)
        create = await stage.wanted(request_id="once")
        created = await asyncio.gather(*(stage.runs.CreateRun(create) for _ in range(4)))
        assert len({response.run.id for response in created}) == 1


async def test_run_waits_for_tokens_that_others_used_up(tmp_path: Path) -> None:
    quotas = {"scripted": Quota(tokens_per_minute=60_000, burst_seconds=0.5)}
    async with stage_with(tmp_path, quotas=quotas) as stage:
        # The first one takes more than there is: its debt delays the second.
        stage.play(Scene(times=1, text="dear", usage=Usage(input=1_000, output=300)), Scene(text="fine"))
        assert (await stage.play_out()).text == "dear"
        story = await stage.play_out()
        assert story.text == "fine"
        waits = story.all("retry_scheduled")
        assert [wait.reason for wait in waits] == [RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED] * len(waits)
        assert waits
        assert (story.run.attempt, len(stage.asked)) == (1, 2)


async def test_model_takes_so_many_turns_at_a_time(tmp_path: Path) -> None:
    async with stage_with(tmp_path, quotas={"scripted": Quota(concurrent_runs=1)}) as stage:
        stage.play(Scene(times=1, deltas=6, hold_after=3), Scene(text="fine"))
        first = await stage.start()
        await stage.request()
        second = await stage.start()
        await stage.until(second.id, "retry_scheduled")
        assert len(stage.asked) == 1
        (await stage.request()).released.set()
        await stage.tell(first.id)
        assert (await stage.tell(second.id)).text == "fine"


async def test_provider_that_asks_for_a_pause_gets_it_from_all_runs(tmp_path: Path) -> None:
    quotas = {"scripted": Quota(requests_per_minute=6_000)}
    async with stage_with(tmp_path, quotas=quotas, worker={"slots": 1}) as stage:
        busy = Fault(kind="status", status=429, headers={"retry-after": "90"})
        stage.play(Scene(times=1, fault=busy), Scene(text="fine"))
        runs = [await stage.start() for _ in range(2)]
        for run in runs:
            # It fails nobody, and keeps nobody else from the only slot.
            [*_, wait] = await stage.until(run.id, "retry_scheduled")
            assert wait.retry_scheduled.reason == RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED
            assert wait.retry_scheduled.delay.ToTimedelta().total_seconds() > 30
        assert len(stage.asked) == 1
        assert (await stage.play_out(model="chat")).text == "fine"
        for run in runs:
            await stage.cancel(run.id)
            assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_CANCELLED


async def test_run_that_waits_for_a_limit_leaves_its_slot_to_others(tmp_path: Path) -> None:
    quotas = {"scripted": Quota(requests_per_minute=1)}
    async with stage_with(tmp_path, quotas=quotas, worker={"slots": 1}) as stage:
        stage.play(Scene(text="fine"))
        await stage.play_out()
        waiting = await stage.start()
        await stage.until(waiting.id, "retry_scheduled")
        assert (await stage.play_out(model="chat")).text == "fine"
        assert (await stage.get(waiting.id)).state == RunState.RUN_STATE_QUEUED
        assert len(stage.asked) == 2


async def test_caller_without_tokens_is_refused_before_his_run_would_only_wait(tmp_path: Path) -> None:
    async with stage_with(tmp_path, user=Quota(tokens_per_minute=60)) as stage:
        stage.play(Scene(text="dear", usage=Usage(input=1_000, output=300)))
        thread = await stage.thread(user_id="me")
        await stage.play_out(thread_id=thread.id)
        seconds = check_told(
            await refused(stage.start(thread_id=thread.id)), "user.tokens_per_minute", "user:default/me"
        )
        assert seconds > 1_000


async def test_limit_of_the_variant_goes_to_the_fallback_and_kills_no_run_where_that_is_down(tmp_path: Path) -> None:
    quotas = {"scripted": Quota(requests_per_minute=1)}
    route = Route(name="careful", variants=(Variant(model="scripted"),), fallbacks=("chat",))
    async with stage_with(tmp_path, quotas=quotas, routes=[route]) as stage:
        stage.play(Scene(times=2, text="fine"), Scene(fault=Fault(kind="status", status=500)))
        variants = [(await stage.play_out(model="careful")).run.variant for _ in range(2)]
        assert variants == ["scripted", "chat"]
        waiting = await stage.start(model="careful")
        [*_, wait] = await stage.until(waiting.id, "retry_scheduled")
        while wait.retry_scheduled.reason != RunErrorCode.RUN_ERROR_CODE_RATE_LIMIT_EXCEEDED:
            [*_, wait] = await stage.until(waiting.id, "retry_scheduled", after=wait.sequence)
        assert wait.retry_scheduled.delay.ToTimedelta().total_seconds() > 2
        await stage.cancel(waiting.id)
        assert (await stage.tell(waiting.id)).run.state == RunState.RUN_STATE_CANCELLED


async def test_run_that_is_broken_off_gives_its_place_with_the_model_back(tmp_path: Path) -> None:
    async with stage_with(tmp_path, quotas={"scripted": Quota(concurrent_runs=1)}) as stage:
        stage.play(Scene(times=3, deltas=6, hold_after=3), Scene(text="fine"))
        for number in range(1, 4):
            run = await stage.start()
            await stage.request(number)
            await stage.cancel(run.id)
            assert (await stage.tell(run.id)).run.state == RunState.RUN_STATE_CANCELLED
        assert (await stage.play_out()).text == "fine"


async def test_failed_run_names_the_model_that_failed(tmp_path: Path) -> None:
    route = Route(name="plain", variants=(Variant(model="chat"),))
    async with stage_with(tmp_path, routes=[route]) as stage:
        stage.play(Scene(fault=Fault(kind="status", status=400)))
        run = (await stage.play_out(model="plain")).run
        assert (run.state, run.variant) == (RunState.RUN_STATE_FAILED, "chat")
