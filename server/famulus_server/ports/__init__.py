"""What the engine needs from the world, as Protocols. Their docstrings are the contracts; adapters implement them.

Store        SQL, the only source of truth (contract 1)
EventLog     the tail of a run's events outside this process; may be lost (contract 2)
Hints        short messages between replicas; may be lost, too
Limiter      limits that all replicas share; may be lost
ThreadCache  what is remembered of threads; may be lost
Model        one model turn, streamed
Authenticator  who calls, by the credentials of a call
Vault        the operator's key, which wraps all others
Sealer       encrypts what leaves this process
Metrics      what is counted and measured
Clock        wall time
Ids          new resource ids
Tracer       traces of calls, runs and questions to models

Messages of `famulus.v1` are the vocabulary (docs/adr/0001): a `Run` is the run everywhere.
"""

from famulus_server.errors import Allowance
from famulus_server.ports.audit import (
    AuditEntry,
    AuditLog,
    AuditRow,
)
from famulus_server.ports.encryption import (
    DataKey,
    DataKeys,
    KeyUnknown,
    Place,
    SealedBodies,
    Sealer,
    Vault,
    WrappedKey,
)
from famulus_server.ports.erasure import (
    Deletion,
    Deletions,
    Lifetimes,
)
from famulus_server.ports.event_log import (
    EventBatch,
    EventLog,
)
from famulus_server.ports.hints import (
    STOP,
    WORK,
    Hints,
    events_topic,
)
from famulus_server.ports.identity import (
    Authenticator,
    Caller,
    Credentials,
)
from famulus_server.ports.limiter import (
    Demand,
    Limit,
    Limiter,
    Quantity,
    Refused,
    Scope,
)
from famulus_server.ports.metrics import (
    Metrics,
)
from famulus_server.ports.model import (
    AnnotationChunk,
    CallChunk,
    Model,
    ModelCard,
    ModelEvent,
    ModelRequest,
    Models,
    ReasoningChunk,
    RefusalChunk,
    Retrying,
    TextChunk,
    TurnEnded,
    TurnOutcome,
)
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
from famulus_server.ports.store import (
    Assistants,
    Messages,
    RequestIds,
    Runs,
    Secrets,
    Steps,
    Store,
    Threads,
    Transaction,
    Turns,
    Usages,
)
from famulus_server.ports.thread_cache import (
    Remembered,
    ThreadCache,
)
from famulus_server.ports.time import (
    Clock,
    Ids,
)
from famulus_server.ports.tracing import (
    UNTRACED,
    Attributes,
    Span,
    SpanKind,
    Tracer,
)

__all__ = [
    "STOP",
    "UNTRACED",
    "WORK",
    "Account",
    "Allowance",
    "AnnotationChunk",
    "Assistants",
    "Attributes",
    "AuditEntry",
    "AuditLog",
    "AuditRow",
    "Authenticator",
    "Backlog",
    "CallChunk",
    "Caller",
    "Claimed",
    "Clock",
    "Credentials",
    "Cursor",
    "DataKey",
    "DataKeys",
    "Deletion",
    "Deletions",
    "Demand",
    "EventBatch",
    "EventLog",
    "Hints",
    "Ids",
    "KeyUnknown",
    "Lease",
    "Lifetimes",
    "Limit",
    "Limiter",
    "Messages",
    "Metrics",
    "Model",
    "ModelCard",
    "ModelEvent",
    "ModelRequest",
    "Models",
    "Place",
    "Quantity",
    "Queue",
    "ReasoningChunk",
    "RefusalChunk",
    "Refused",
    "Remembered",
    "RequestIds",
    "RequestKey",
    "Retrying",
    "RunFilter",
    "Runs",
    "Scope",
    "SealedBodies",
    "Sealer",
    "Secrets",
    "Span",
    "SpanKind",
    "Steps",
    "Store",
    "TextChunk",
    "ThreadCache",
    "ThreadFilter",
    "Threads",
    "Tracer",
    "Transaction",
    "Turn",
    "TurnEnded",
    "TurnOutcome",
    "Turns",
    "UsageGroup",
    "UsageQuery",
    "Usages",
    "Vault",
    "Waiting",
    "WrappedKey",
    "events_topic",
]
