"""The limits in Redis: scripts, each one unit and one command.

A bucket is a string, the time at which it will be full, and a pause another one, the time at which it ends; a limit of
runs is a sorted set of holders by the time at which their places are free again. Times are microseconds of Redis's own
clock. What means nothing any more expires. What another program has put in a key's place is nothing, and is
overwritten.

The first line makes Redis refuse a script as a whole where it may only be read, or is full: it would else answer those
calls that write nothing, and would seem to be well.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from famulus_server.coordination.buckets import (
    LONGEST_WAIT_FOR_RUNS,
    SETTLED_SECONDS,
    Name,
    name_of,
    price_of,
    to_microseconds,
)
from famulus_server.ports import Demand, Limit

Command: TypeAlias = list[str | bytes | int]

# One tag in all names: a cluster keeps them in one place, as a script needs it.
_PREFIX = "famulus:{limits}:"
_PAUSED = _PREFIX + "paused:"
_REPLICAS = _PREFIX + "replicas"
# A replica that is not heard of for so long shares the limits no more.
_REPLICA_SECONDS = 7.0

_NOW = b"""#!lua
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""
# What somebody else has put in a key's place is nothing: what is no number, or one that no moment can be.
_TIME_OF = b"""
local function time_of(value)
  local time = tonumber(value)
  return time and time < 9e15 and time or 0
end
"""
_FILL_AT = b"""
local function fill_at(key, time)
  if time > now then
    redis.call('SET', key, time, 'PX', math.ceil((time - now) / 1000))
  else
    redis.call('DEL', key)
  end
end
"""
# Numbers as one text, which is read faster than as many answers.
_TELL = b"""
local function tell(numbers)
  for i, number in ipairs(numbers) do numbers[i] = string.format('%.0f', number) end
  return table.concat(numbers, ' ')
end
"""
# All is looked at before anything is taken. What is no string is read as nothing.
# KEYS: for each demand the bucket or the holders, then for each the pause. ARGV: how many demands are of buckets, which
# come first; holder; how long he holds his places; the longest wait for a place; then for each demand capacity and
# cost, or the most places and 0.
# Answers 0 twice, or which demand has to wait longest (from 1) and how long; and in how long each bucket will be full.
_TAKE = (
    _NOW
    + _TIME_OF
    + _FILL_AT
    + _TELL
    + b"""
local count, buckets, holder, expiry = #KEYS / 2, tonumber(ARGV[1]), ARGV[2], now + ARGV[3]
local longest_for_place = tonumber(ARGV[4])
local refusing, longest = 0, 0
local values, times, held = redis.call('MGET', unpack(KEYS)), {}, {}
for i = 1, count do
  local key, most, cost = KEYS[i], tonumber(ARGV[2 * i + 3]), tonumber(ARGV[2 * i + 4])
  local wait = time_of(values[count + i]) - now
  if i <= buckets then
    local time = times[key] or math.max(time_of(values[i]), now)
    wait = math.max(wait, time + math.min(cost, most) - most - now)
    times[key] = time + cost
  else
    local gone = redis.pcall('ZREMRANGEBYSCORE', key, '-inf', now)
    if type(gone) == 'table' then redis.call('DEL', key) end
    held[i] = redis.call('ZCARD', key)
    local full = held[i] >= most
    if (full or wait > 0) and redis.call('ZSCORE', key, holder) then
      wait = 0
    elseif full then
      local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
      wait = math.max(wait, math.min(first - now + 1, longest_for_place))
    end
  end
  if wait > longest then refusing, longest = i, wait end
end
local answer = {refusing, longest}
for i = 1, buckets do answer[i + 2] = times[KEYS[i]] - now end
if refusing > 0 then
  for i = 1, buckets do answer[i + 2] = answer[i + 2] - ARGV[2 * i + 4] end
  return tell(answer)
end
for key, time in pairs(times) do fill_at(key, time) end
for i = buckets + 1, count do
  redis.call('ZADD', KEYS[i], 'GT', expiry, holder)
  local latest = math.ceil(expiry / 1000)
  if held[i] > 0 then redis.call('PEXPIREAT', KEYS[i], latest, 'GT') else redis.call('PEXPIREAT', KEYS[i], latest) end
end
return tell(answer)
"""
)
# KEYS: marker, buckets, holders. ARGV: milliseconds for which the marker stays, what each bucket is charged, or given
# back, and the holder who leaves his places.
# Answers in how long each bucket will be full; nothing where that was done before.
_SETTLE = (
    _NOW
    + _TIME_OF
    + _FILL_AT
    + _TELL
    + b"""
for i = #ARGV, #KEYS do redis.pcall('ZREM', KEYS[i], ARGV[#ARGV]) end
if not redis.call('SET', KEYS[1], '', 'NX', 'PX', ARGV[1]) then return '' end
local answer, values = {}, redis.call('MGET', unpack(KEYS))
for i = 2, #ARGV - 1 do
  local time = math.max(time_of(values[i]), now) + ARGV[i]
  fill_at(KEYS[i], time)
  answer[i - 1] = math.max(time - now, 0)
end
return tell(answer)
"""
)
# KEYS: holders. ARGV: holder. A Redis that is full is asked, too: it has more room afterwards.
_RELEASE = b"""#!lua flags=allow-oom
for _, key in ipairs(KEYS) do redis.pcall('ZREM', key, ARGV[1]) end
return 0
"""
# Buckets will be full, and pauses end, at the earliest after so many microseconds. KEYS: these. ARGV: microseconds.
_OWE = (
    _NOW
    + _TIME_OF
    + _FILL_AT
    + b"""
for i, value in ipairs(redis.call('MGET', unpack(KEYS))) do
  fill_at(KEYS[i], math.max(time_of(value), now + ARGV[i]))
end
"""
)
# KEYS: replicas. ARGV: replica, for how long it counts. Answers how many there are.
_REGISTER = (
    _NOW
    + b"""
if redis.call('TYPE', KEYS[1]).ok ~= 'zset' then redis.call('DEL', KEYS[1]) end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))
return redis.call('ZCARD', KEYS[1])
"""
)
_OWED_AT_A_TIME = 500


def take(demands: Sequence[Demand], *, buckets: int, holder: str, seconds: float) -> Command:
    """Takes all that is demanded, or nothing; the demands of `buckets` come first."""
    names = [_told(name_of(demand.limit)) for demand in demands]
    numbers: Command = []
    for demand in demands:
        limit = demand.limit
        if limit.quantity == "runs":
            numbers += (limit.most, 0)
        else:
            numbers += (price_of(limit, limit.most), price_of(limit, demand.amount))
    times = to_microseconds(seconds), LONGEST_WAIT_FOR_RUNS
    keys = [*(_PREFIX + name for name in names), *(_PAUSED + name for name in names)]
    return ["EVAL", _TAKE, len(keys), *keys, buckets, holder, *times, *numbers]


def settle(
    demands: Sequence[Demand], *, key: str, used: int, places: Sequence[Limit] = (), holder: str = ""
) -> Command:
    """Charges what was used beyond what was demanded, or gives back, once per key. Gives the holder's places back."""
    keys = [f"{_PREFIX}settled:{key}", *(_key(name_of(demand.limit)) for demand in demands)]
    keys += [_key(name_of(limit)) for limit in places]
    changes = [price_of(demand.limit, used) - price_of(demand.limit, demand.amount) for demand in demands]
    return ["EVAL", _SETTLE, len(keys), *keys, SETTLED_SECONDS * 1_000, *changes, holder]


def release(limits: Sequence[Limit], *, holder: str) -> Command:
    """Gives the holder's places back."""
    return ["EVAL", _RELEASE, len(limits), *(_key(name_of(limit)) for limit in limits), holder]


def observe(limit: Limit, *, left: int) -> Command:
    """Nothing more is left than that."""
    return _owe({name_of(limit): price_of(limit, limit.most) - price_of(limit, left)})


def pause(limits: Sequence[Limit], *, seconds: float) -> Command:
    """Nothing is to be had for so long."""
    keys = [_PAUSED + _told(name_of(limit)) for limit in limits]
    return ["EVAL", _OWE, len(keys), *keys, *(to_microseconds(seconds) for _ in keys)]


def numbers_of(answer: bytes) -> list[int]:
    """What `take` and `settle` are answered."""
    return list(map(int, answer.split()))


def owe(debts: Mapping[Name, int]) -> Iterable[Command]:
    """Buckets have at least these debts, in microseconds."""
    names = list(debts)
    for start in range(0, len(names), _OWED_AT_A_TIME):
        yield _owe({name: debts[name] for name in names[start : start + _OWED_AT_A_TIME]})


def register(replica: str) -> Command:
    """The replica shares the limits, for some seconds."""
    return ["EVAL", _REGISTER, 1, _REPLICAS, replica, to_microseconds(_REPLICA_SECONDS)]


def leave(replica: str) -> Command:
    """The replica shares them no more."""
    return ["ZREM", _REPLICAS, replica]


def _owe(debts: Mapping[Name, int]) -> Command:
    return ["EVAL", _OWE, len(debts), *map(_key, debts), *debts.values()]


def _key(name: Name) -> str:
    return _PREFIX + _told(name)


def _told(name: Name) -> str:
    scope, quantity, subject = name
    if scope == "user":
        # What is left here of a user whose data was deleted does not name him, until it expires.
        subject = hashlib.sha256(subject.encode()).hexdigest()
    return f"{scope}:{quantity}:{subject}"
