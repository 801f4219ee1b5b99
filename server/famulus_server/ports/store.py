"""The port to SQL, the only source of truth (contract 1).

Every `tenant` parameter scopes the operation: another tenant's row is as good as none.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from famulus.v1.assistant_pb2 import Assistant
from famulus.v1.message_pb2 import Message
from famulus.v1.run_pb2 import Run
from famulus.v1.run_step_pb2 import RunStep
from famulus.v1.thread_pb2 import Thread
from famulus.v1.usage_service_pb2 import UsageRow
from famulus_server.ports.audit import AuditLog
from famulus_server.ports.encryption import DataKeys, SealedBodies
from famulus_server.ports.erasure import Deletions, Lifetimes
from famulus_server.ports.records import (
    Account,
    Backlog,
    Claimed,
    Cursor,
    Lease,
    Queue,
    RequestKey,
    RunFilter,
    ThreadFilter,
    Turn,
    UsageGroup,
    UsageQuery,
    Waiting,
)

T = TypeVar("T")


class RequestIds(Protocol):
    """Request ids with what they made."""

    async def find(self, tenant: str, key: RequestKey) -> str | None:
        """Id of what this request made within the last 24 h. Raises AlreadyExists (REQUEST_ID_REUSED) where the
        fingerprint differs."""

    async def remember(self, tenant: str, key: RequestKey, resource_id: str) -> None:
        """Notes what the request made. An entry older than 24 h is replaced."""

    async def forget_old(self, limit: int) -> int:
        """Deletes at most `limit` entries older than 24 h; returns how many."""


class Assistants(Protocol):
    """Assistants and their versions. `version` and `etag` of what is passed in are set here, in place."""

    async def insert(self, tenant: str, assistant: Assistant, *, config_hash: bytes | None = None) -> bool:
        """Stores version 1. False, storing nothing, if `config_hash` is taken by another assistant of the tenant."""

    async def get(self, tenant: str, assistant_id: str, *, version: int = 0, lock: bool = False) -> Assistant:
        """The assistant, newest version unless one is named. Raises NotFound. `lock` holds the row until the end of
        the write."""

    async def find(self, tenant: str, config_hash: bytes) -> Assistant | None:
        """The assistant made by EnsureAssistant for this configuration, newest version."""

    async def page(self, tenant: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        """Newest first, by (create_time in microseconds, id)."""

    async def versions(self, tenant: str, assistant_id: str, *, after: Cursor | None, limit: int) -> list[Assistant]:
        """Newest first; the cursor's number is the version. Raises NotFound."""

    async def replace(self, tenant: str, assistant: Assistant) -> None:
        """Stores the next version and frees the configuration hash, if there was one."""

    async def delete(self, tenant: str, assistant_id: str) -> None:
        """Removes the assistant with all versions. Raises NotFound."""


class Threads(Protocol):
    """Threads. `etag` is set here; `active_run_id` and `last_message_sequence` are filled in on every read."""

    async def insert(self, tenant: str, thread: Thread, messages: Sequence[Message] = ()) -> None:
        """Stores a new thread with its first messages, which are changed as by `messages.append`."""

    async def get(self, tenant: str, thread_id: str, *, lock: bool = False) -> Thread:
        """Raises NotFound, also for a deleted thread."""

    async def outline(self, tenant: str, thread_id: str) -> Thread:
        """What its deletion needs to know of a thread, which may be one that nobody can read any more: its id, user,
        etag, times, retention and active run. Locks the thread. Raises NotFound."""

    async def page(self, tenant: str, which: ThreadFilter, *, after: Cursor | None, limit: int) -> list[Thread]:
        """Latest activity first, by (last_activity_time in microseconds, id)."""

    async def replace(self, tenant: str, thread: Thread) -> None:
        """Stores the thread's own fields and moves the etag on."""

    async def hold(self, tenant: str, thread_id: str) -> None:
        """Locks the thread until the end of the write."""

    async def touch(self, tenant: str, thread_id: str, now: datetime) -> None:
        """Notes activity, never moving it back, and locks the thread until the end of the write. Nothing happens where
        the thread is deleted."""

    async def fork(self, tenant: str, origin_id: str, upto_sequence: int, thread: Thread) -> None:
        """Stores a new thread that shares the origin's messages up to a sequence, without copying any."""

    async def bury(self, tenant: str, thread_id: str, now: datetime) -> int:
        """Removes the thread with its messages, runs, steps and turns; messages that a fork refers to stay for the
        fork. A tombstone without content stays, and so do records of usage; whose the thread was, it tells only as long
        as such messages are left. Returns how many messages are gone. Raises NotFound."""

    async def erase(self, tenant: str, thread_id: str, now: datetime) -> int:
        """Removes the messages that were written in a thread, deleted or not, from it and from all forks, which then
        see a new revision; a tombstone forgets whose it was. Locks the thread and these forks. Returns how many
        messages are gone; `runs.deleted_since` then has the forks, too, with their own ids for that of a run."""

    async def of_user(
        self, tenant: str, user_id: str, *, until: datetime | None = None, after: str = "", limit: int
    ) -> list[tuple[str, bool]]:
        """Ids behind another, in their order, of the threads of a user; each with whether it is deleted, and messages
        of it live on in forks. `until`: only those that were created then or before."""

    async def tenants(self, *, after: str, limit: int) -> list[str]:
        """The tenants that have threads, in order."""

    async def outlived(self, tenant: str, lifetimes: Lifetimes, now: datetime, *, limit: int) -> list[str]:
        """Ids of threads whose time is over by the rules of their tenant, and that have no active run."""

    async def expired(self, now: datetime, *, limit: int) -> list[tuple[str, str]]:
        """(tenant, id) of threads whose time is over by what they say themselves, and that have no active run: at most
        `limit` that were kept for some time, and as many that go with their last run."""

    async def clear_tombstones(self, before: datetime, *, limit: int) -> int:
        """Removes at most `limit` tombstones of threads that were deleted at a time or before, but for those whose
        messages live on in forks; returns how many."""


class Messages(Protocol):
    """Messages as one thread sees them. A fork sees its origin's up to its point, then its own."""

    async def append(
        self, tenant: str, thread_id: str, messages: Sequence[Message], *, now: datetime | None = None
    ) -> None:
        """Gives the messages the next sequences (in place, with etag and thread_id), stores them. `now` notes activity
        on the thread, as `threads.touch`. Raises NotFound."""

    async def put(self, tenant: str, thread_id: str, messages: Sequence[Message], *, first: int) -> None:
        """The same with sequences that were taken for them before, from `first` on (`runs.hold`)."""

    async def get(self, tenant: str, thread_id: str, message_id: str, *, lock: bool = False) -> Message:
        """Raises NotFound."""

    async def page(
        self,
        tenant: str,
        thread_id: str,
        *,
        limit: int,
        after_sequence: int = 0,
        before_sequence: int | None = None,
        descending: bool = False,
        run_id: str = "",
    ) -> list[Message]:
        """Messages with after_sequence < sequence < before_sequence, in order; none where there is no thread."""

    async def newest(
        self, tenant: str, thread_id: str, *, limit: int, after_sequence: int = 0
    ) -> tuple[int, list[Message]]:
        """The thread's revision, and its newest messages with sequence > after_sequence, newest first, as of one
        moment. The revision counts `replace` and `delete`. 0 and none where there is no thread."""

    async def replace(self, tenant: str, thread_id: str, message: Message) -> None:
        """Changes a message for this thread only, and counts its revision up. Raises NotFound."""

    async def delete(self, tenant: str, thread_id: str, message_id: str) -> None:
        """Removes a message from this thread only, and counts its revision up. Raises NotFound."""


class Runs(Protocol):
    """Runs; the row is also the queue entry. `etag` is set here. `lifecycle.ACTIVE` has the states that are active.

    A QUEUED run may wait in line behind the active one of its thread: it is then nobody's to claim, and not active. Or
    it may be parked, until its `wake_time` has come and `wake` was called: until then it is nobody's to claim, either.
    """

    async def insert(self, tenant: str, run: Run, *, lease: Lease | None, line: int | None = None) -> None:
        """Stores a new run, with its first lease where one is given, or at a place in line, lowest first. Raises
        FailedPrecondition (THREAD_HAS_ACTIVE_RUN, metadata run_id) if the thread has an active run, and this one is not
        in line: the database itself says so."""

    async def get(self, tenant: str, run_id: str, *, lock: bool = False) -> Run:
        """Raises NotFound."""

    async def page(self, tenant: str, which: RunFilter, *, after: Cursor | None, limit: int) -> list[Run]:
        """Newest first, by (create_time in microseconds, id)."""

    async def outlines(self, tenant: str, thread_id: str) -> list[Run]:
        """All runs on a thread, also those that nobody can read any more: of each its id, thread, user, assistant and
        state."""

    async def hold(self, tenant: str, known: Run, now: datetime, *, messages: int = 0) -> tuple[Run, int]:
        """A run of the caller's own, as it is now, locked behind its thread. What is `known` of it is not read again
        where it is still true. On the thread activity is noted, and sequences for so many messages are taken: the
        first of them is returned (`messages.put`). Raises NotFound."""

    async def replace(
        self, tenant: str, run: Run, *, attempt: int, lease: Lease | None = None, wake_time: datetime | None = None
    ) -> bool:
        """Stores a run whose stored attempt is `attempt`; raises LeaseLost where it is not (zero rows changed) or the
        run is gone. The lease stays while the new state is IN_PROGRESS or CANCELLING, and ends otherwise;
        `lease` gives a new one. `wake_time` parks a QUEUED run; a parked one stays so while it is QUEUED. Returns
        whether there are runs in line on its thread."""

    async def queue(self, *, first: str, limit: int) -> Queue:
        """What there is to claim. Of those tenants whose runs wait, at most `limit` are named: from `first` on in the
        order of their names, and round to it. Everything is counted up to `limit`."""

    async def claim(self, lease: Lease, shares: Mapping[str, int]) -> list[Claimed]:
        """Gives this worker the first QUEUED runs of each tenant, at most so many; fewer where others are faster.

        A run becomes IN_PROGRESS, which is a fact and takes the next sequence; `attempt` and `turn_attempt` grow by
        one. Of one tenant, those first whose create_time, and the delay of their priority with it, is the lowest."""

    async def take_over(self, lease: Lease, *, limit: int) -> list[Claimed]:
        """Gives this worker up to `limit` IN_PROGRESS or CANCELLING runs whose lease has run out, oldest first. Adds
        one to `attempt` and `turn_attempt`."""

    async def wake(self, *, limit: int) -> int:
        """Lets at most `limit` parked runs be claimed whose time has come; returns how many."""

    async def backlog(self, tenant: str, run: Run, *, limit: int) -> Backlog:
        """How the tenant's runs wait, seen from a run that is about to wait as well. Counted up to `limit`."""

    async def waiting(self, *, limit: int) -> Waiting:
        """How many runs wait, counted up to `limit`. Those in line, and those that are parked, do not."""

    async def renew(self, lease: Lease, run_ids: Collection[str]) -> set[str]:
        """Renews this owner's leases on these runs in one statement; returns the ids of those it still holds."""

    async def stopping(self, owner: str) -> set[str]:
        """The ids of this owner's runs that are CANCELLING."""

    async def versions(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], str]:
        """The etags of those runs, named by (tenant, run id), that exist."""

    async def active(self, tenant: str, thread_id: str) -> Run | None:
        """The active run of a thread, locked."""

    async def in_line(self, tenant: str, thread_id: str, *, upto: int) -> list[Run]:
        """Runs in line on a thread up to a place, first to last, locked."""

    async def promote(self, tenant: str, thread_id: str) -> Run | None:
        """Makes the first run in line the active one, and returns it. None, changing nothing, where the thread has an
        active run, or nobody waits."""

    async def keep_messages(self, tenant: str, run_id: str, messages: Sequence[Message]) -> None:
        """Keeps messages with a run in line."""

    async def take_messages(self, tenant: str, run_id: str) -> list[Message]:
        """Returns the messages kept with a run, and removes them there."""

    async def take_deleted(self, before: datetime, *, limit: int) -> list[tuple[str, str, str]]:
        """(tenant, thread id, run id) of at most `limit` runs that were deleted with their thread at a time or before,
        each given once."""

    async def deleted_since(self, tenant: str, since: datetime, *, after: str, limit: int) -> list[tuple[str, str]]:
        """(thread id, run id), by run id and behind one, of a tenant's runs that were deleted with their thread at a
        time or later, and that `take_deleted` has not given."""

    async def due(self, now: datetime, *, limit: int) -> list[tuple[str, str]]:
        """(tenant, run id) of QUEUED and REQUIRES_ACTION runs past their expire_time: those no worker watches."""


class Steps(Protocol):
    """Steps of runs, kept by position."""

    async def put(self, tenant: str, step: RunStep) -> None:
        """Stores a step, new or changed. Raises LeaseLost where the run is gone."""

    async def get(self, tenant: str, run_id: str, step_id: str) -> RunStep:
        """Raises NotFound."""

    async def page(self, tenant: str, run_id: str, *, after_position: int = 0, limit: int = 100_000) -> list[RunStep]:
        """In order of position."""


class Turns(Protocol):
    """Committed model turns of runs."""

    async def put(self, tenant: str, run_id: str, turn: Turn) -> None:
        """Stores a turn, new or changed. Raises LeaseLost where the run is gone."""

    async def all(self, tenant: str, run_id: str) -> list[Turn]:
        """All turns of a run, in order."""


class Usages(Protocol):
    """What runs used, a record of each, and what was spent. Records stay when their threads are deleted."""

    async def put(self, tenant: str, run: Run) -> None:
        """Notes what a run has used so far, and how it stands, in its record."""

    async def page(self, tenant: str, which: UsageQuery, *, after: UsageGroup | None, limit: int) -> list[UsageRow]:
        """The groups that have runs, in the order of the fields of `UsageGroup`."""

    async def spend(self, tenant: str, accounts: Sequence[Account], cost_nanos: int) -> None:
        """Adds a cost to what was spent on each account, and locks them until the end of the write. An account that is
        new begins with the cost of all records of runs created in its period: the cost that is added must not be in
        the records yet."""

    async def spent(self, tenant: str, accounts: Sequence[Account]) -> list[int]:
        """What was spent on each account, in nanos. It may make accounts, so it needs a write."""

    async def anonymize(self, tenant: str, user_id: str, *, limit: int) -> int:
        """Takes the user's name from at most `limit` records; returns from how many. Once there are none left, what was
        spent is no longer known by this name, either."""


class Secrets(Protocol):
    """Random keys that all replicas share."""

    async def obtain(self, name: str) -> bytes:
        """32 random bytes, made at the first call ever."""


class Transaction(Protocol):
    """What a unit of work sees of the store."""

    @property
    def requests(self) -> RequestIds: ...
    @property
    def assistants(self) -> Assistants: ...
    @property
    def threads(self) -> Threads: ...
    @property
    def messages(self) -> Messages: ...
    @property
    def runs(self) -> Runs: ...
    @property
    def steps(self) -> Steps: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def usages(self) -> Usages: ...
    @property
    def deletions(self) -> Deletions: ...
    @property
    def secrets(self) -> Secrets: ...
    @property
    def audit(self) -> AuditLog: ...
    @property
    def keys(self) -> DataKeys: ...
    @property
    def sealed(self) -> SealedBodies: ...


class Store(Protocol):
    """Runs units of work, each in one transaction.

    A unit that writes locks in one order, so that no two wait for each other: its request id (`requests.find`, which
    comes first), the thread (`threads.touch`, or `get` with `lock`), then the thread's messages and runs, and
    accounts (`usages.spend`), a tenant's before its user's.

    A unit awaits nothing but methods of its transaction, and has no effect outside it: it may be run again, and on
    another thread. What it raises undoes it and reaches the caller. When `write` returns, the change is durable, and
    every later `read` on any replica sees it (contract 28). Both raise Unavailable when the database is away or has
    too much to do. After it a change may be stored or not: the answer to the commit may be what was lost.
    """

    async def read(self, unit: Callable[[Transaction], Awaitable[T]]) -> T: ...
    async def write(self, unit: Callable[[Transaction], Awaitable[T]]) -> T: ...
