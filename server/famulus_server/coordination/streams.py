"""Redis Streams as the event log uses them: one stream per run, one entry per batch of events, whose id is its last
sequence (contract 11)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from google.protobuf.message import DecodeError
from redis.exceptions import ResponseError

from famulus_server.coordination.backlog import Entry
from famulus_server.coordination.channels import channel_of
from famulus_server.coordination.connection import Line, Reader, reason
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.patience import Patience
from famulus_server.engine.packing import unpack
from famulus_server.ports import EventBatch, Sealer, events_topic

# What a stream keeps of a run, in batches of events.
_MAX_BATCHES = 10_000
_WRITE_TIMEOUT = 1.0
# An answer with so much gets no more runs: this process must not take its own work for Redis's silence.
_ANSWER_BATCHES = 256
_ANSWER_BYTES = 256 * 1024
_STREAMS_AT_A_TIME = 500
_FIELD = b"e"
# No sequence is higher: behind it, nothing is accepted.
_END = b"9223372036854775807-0"
# No batch begins with this: who knows no encryption takes a sealed one for damaged, never for another event.
_SEALED = b"\x00"

# One unit, so that a Redis which refuses in between cannot leave a hole: whether it is full is asked before the first
# write only, which therefore has to be an XADD. Where the stream lacks what comes before these events, nothing is
# written if they may wait (-1). Otherwise it starts anew with them; its last id stays, and with it the refusal of late
# writers.
# KEYS: stream. ARGV: batches to keep, seconds to keep them, what must be there, whether they may wait, channel, then id
# and batch by turns. Answers how many were refused: the first of them, since ids grow.
_APPEND = b"""
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local hole = (last and tonumber(string.match(last[1], '%d+')) or 0) < tonumber(ARGV[3])
if hole and ARGV[4] == '1' then return -1 end
local refused = 0
for i = 6, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], ARGV[i], 'e', ARGV[i + 1])
  if added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then return added end
    refused = refused + 1
  elseif hole then
    redis.call('XTRIM', KEYS[1], 'MINID', ARGV[i])
    hole = false
  end
end
if refused < (#ARGV - 5) / 2 then
  redis.call('EXPIRE', KEYS[1], ARGV[2])
  redis.pcall('PUBLISH', ARGV[5], '')
end
return refused
"""
_SECONDS = 5  # the place of the seconds in the whole command
_NOT_YET = -1
# Batches behind an id of each stream, until the answer is large: how many streams were looked at, and of those with
# any, which one it is (from 1), whether it was cut because of that (1), and the batches.
# KEYS: streams. ARGV: most batches of a stream, how many batches and bytes make an answer large, then the id for each.
_READ = b"""
local limit, many, large = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, count, size = {}, 0, 0
for i, key in ipairs(KEYS) do
  if count >= many or size >= large then return {i - 1, found} end
  local entries = redis.pcall('XRANGE', key, '(' .. ARGV[i + 3], '+', 'COUNT', limit)
  if entries.err and string.find(entries.err, 'WRONGTYPE', 1, true) ~= 1 then return entries end
  if #entries > 0 then
    local batches, cut = {}, 0
    for j, entry in ipairs(entries) do
      if j > 1 and size >= large then
        cut = 1
        break
      end
      batches[j] = entry[2][2]
      size = size + #entry[2][2]
    end
    found[#found + 1] = {i, cut, batches}
    count = count + #batches
  end
end
return {#KEYS, found}
"""
# The last id of each stream, empty where there is none.
_TAILS = b"""
local tails = {}
for i, key in ipairs(KEYS) do
  local last = redis.pcall('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  tails[i] = last and last[1] or ''
end
return tails
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch: how many events that were new were refused, as those of a late writer, and the runs of
    which something was not written, because what comes before it is not there yet."""

    refused: int
    waiting: frozenset[str]


@dataclass(slots=True)
class _Call:
    """One command, and the batches in it; the first `again` of them were sent before."""

    arguments: list[str | bytes | int]
    run_id: str = ""
    batches: list[EventBatch] = field(default_factory=list)
    again: int = 0

    def lost(self, refused: int) -> int:
        """How many events are not there, where so many batches, the first, were refused: what was sent before was
        not lost, but there."""
        return sum(batch.count for batch in self.batches[self.again : refused])


class RedisStreams:
    """The streams of all runs behind one URL; `patience` is that of its readers, `sealer` encrypts the events."""

    def __init__(self, *, url: str, patience: Patience, sealer: Sealer | None = None) -> None:
        self._sealer = sealer
        self._line = Line(url=url, timeout=_WRITE_TIMEOUT)
        self._reader = Reader(url=url, patience=patience)

    async def close(self) -> None:
        """Closes the connections."""
        await self._line.close()
        await self._reader.close()

    async def read(self, cursors: Mapping[str, int], *, limit: int) -> dict[str, list[EventBatch]]:
        """Batches behind a sequence of each run, at most `limit` each, where there are any. Raises RedisUnavailable."""
        found: dict[str, list[EventBatch]] = {}
        rest = list(cursors.items())
        while rest:
            some = rest[:_STREAMS_AT_A_TIME]
            ids = [f"{cursor}-0" for _, cursor in some]
            bounds = limit, _ANSWER_BATCHES, _ANSWER_BYTES
            looked_at, streams = await self._ask_reader(len(some), *(_key(run_id) for run_id, _ in some), *bounds, *ids)
            cut = []
            for number, was_cut, payloads in streams:
                run_id, _ = some[number - 1]
                if batches := self._open(run_id, payloads):
                    found[run_id] = [*found.get(run_id, ()), *batches][:limit]
                    if was_cut and len(found[run_id]) < limit:
                        cut.append((run_id, batches[-1].last))
            rest = [*cut, *rest[looked_at:]]
        return found

    async def _ask_reader(self, *arguments: str | bytes | int) -> Any:
        return await self._reader.ask("EVAL", _READ, *arguments)

    async def renew(self) -> bool:
        """Connects the writer where it is not connected; tells whether it had to. Raises RedisUnavailable."""
        return await self._line.renew()

    async def tails(self, run_ids: Iterable[str]) -> dict[str, int]:
        """The last sequence in the stream of each run that has one. Raises RedisUnavailable."""
        tails: dict[str, int] = {}
        rest = iter(run_ids)
        while some := list(islice(rest, _STREAMS_AT_A_TIME)):
            answers = await self._ask([_Call(["EVAL", _TAILS, len(some), *map(_key, some)])])
            for run_id, last in zip(some, answers[0], strict=True):
                if last:
                    tails[run_id] = int(last.partition(b"-")[0])
        return tails

    async def write(self, batch: Iterable[Entry]) -> Written:
        """Writes all in order, each run's events as one unit. Raises RedisUnavailable, and then nobody knows what was
        written; the next `renew` connects anew."""
        calls = _calls(batch, self._seal)
        answers = await self._ask(calls)
        refused = 0
        waiting = set()
        for call, answer in zip(calls, answers, strict=True):
            if answer == _NOT_YET:
                waiting.add(call.run_id)
            elif isinstance(answer, ResponseError):
                refused += call.lost(len(call.batches))
            elif call.batches:
                refused += call.lost(answer)
        return Written(refused, frozenset(waiting))

    def _seal(self, run_id: str, payload: bytes) -> bytes:
        return payload if self._sealer is None else _SEALED + self._sealer.seal(payload, run_id.encode())

    def _open(self, run_id: str, payloads: Sequence[bytes]) -> list[EventBatch]:
        """The batches; of those that cannot all be opened, the ones behind the last that cannot: there may be a gap at
        the start, and nowhere else."""
        if self._sealer is None:
            return _parse(payloads)
        opened: list[bytes] = []
        for payload in reversed(payloads):
            try:
                opened.append(self._sealer.open(payload.removeprefix(_SEALED), run_id.encode()))
            except ValueError:
                break
        return _parse(opened[::-1])

    async def _ask(self, calls: Sequence[_Call]) -> list[Any]:
        answers = await self._line.ask([call.arguments for call in calls])
        for answer in answers:
            # A foreign kind of key is one run's bad luck. Whatever else is refused, as by a Redis that is full or may
            # only be read, would be refused to all.
            if isinstance(answer, ResponseError) and not str(answer).startswith("WRONGTYPE"):
                await self._line.close()
                raise RedisUnavailable(reason(answer))
        return answers


def _calls(batch: Iterable[Entry], seal: Callable[[str, bytes], bytes]) -> list[_Call]:
    calls: list[_Call] = []
    open_calls: dict[str, _Call] = {}
    for entry in batch:
        key = _key(entry.run_id)
        if entry.batches is None:
            open_calls.pop(entry.run_id, None)
            # An empty stream that refuses everything: a late worker must not bring back what was deleted (contract 24).
            calls += [
                _Call(["DEL", key]),
                _Call(["XADD", key, "MAXLEN", 0, _END, _FIELD, b""]),
                _Call(["EXPIRE", key, entry.seconds]),
            ]
            continue
        call = open_calls.get(entry.run_id)
        follows = entry.batches[0].follows
        if call is None or follows != call.batches[-1].last:
            channel = channel_of(events_topic(entry.run_id))
            may_wait = int(entry.patient)
            # How long they are kept is what the last of them tells.
            arguments: list[str | bytes | int] = ["EVAL", _APPEND, 1, key, _MAX_BATCHES, 0, follows]
            arguments += [may_wait, channel]
            call = _Call(arguments, run_id=entry.run_id)
            open_calls[entry.run_id] = call
            calls.append(call)
        call.arguments[_SECONDS] = entry.seconds
        for appended in entry.batches:
            call.arguments += (f"{appended.last}-0", seal(entry.run_id, appended.payload))
        call.batches += entry.batches
        call.again += len(entry.batches) if entry.again else 0
    return calls


def _parse(payloads: Sequence[bytes]) -> list[EventBatch]:
    try:
        return [unpack(payload) for payload in payloads]
    except (DecodeError, ValueError) as error:
        raise RedisUnavailable("what is in a stream is not ours") from error


def _key(run_id: str) -> bytes:
    return f"famulus:{{{run_id}}}:events".encode()
