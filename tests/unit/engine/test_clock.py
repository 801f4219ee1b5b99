"""Time and ids."""

from datetime import UTC, datetime, timedelta

from famulus_server.engine.clock import SystemClock, TimeOrderedIds, timestamp

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class SteppingClock:
    """Moves on by a step at each look."""

    def __init__(self, step: timedelta) -> None:
        self._now = START
        self._step = step

    def now(self) -> datetime:
        self._now += self._step
        return self._now


def test_ids_sort_by_the_time_they_were_made_at() -> None:
    ids = TimeOrderedIds(clock=SteppingClock(timedelta(milliseconds=1)))
    made = [ids.new("run") for _ in range(1_000)]
    assert made == sorted(made)


def test_ids_of_one_moment_differ() -> None:
    ids = TimeOrderedIds(clock=SteppingClock(timedelta(0)))
    assert len({ids.new("run") for _ in range(10_000)}) == 10_000


def test_id_is_its_prefix_and_26_characters_that_need_no_quoting() -> None:
    made = TimeOrderedIds(clock=SystemClock()).new("msg")
    prefix, _, rest = made.partition("_")
    assert (prefix, len(rest)) == ("msg", 26)
    assert rest.isalnum()
    assert rest == rest.lower()


def test_id_depends_on_time_and_entropy_alone() -> None:
    def make(byte: bytes) -> str:
        return TimeOrderedIds(clock=SteppingClock(timedelta(0)), entropy=lambda size: byte * size).new("run")

    assert make(b"a") == make(b"a")
    assert make(b"a") < make(b"b")
    assert make(b"\x00").endswith("0" * 16)


def test_system_clock_tells_utc() -> None:
    assert SystemClock().now().tzinfo is UTC


def test_timestamp_keeps_microseconds() -> None:
    moment = START + timedelta(microseconds=123456)
    assert timestamp(moment).ToDatetime(UTC) == moment
