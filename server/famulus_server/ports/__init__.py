"""What the engine needs from the world, as Protocols. Their docstrings are the contracts; adapters implement them.

Store      SQL, the only source of truth (contract 1)
EventLog   the tail of a run's events outside this process; may be lost (contract 2)
Hints      short messages between replicas; may be lost, too
Model      one model turn, streamed
Clock      wall time
Ids        new resource ids

Messages of `famulus.v1` are the vocabulary (docs/adr/0001): a `Run` is the run everywhere.
"""

from famulus_server.ports.event_log import (
    EventLog,
)
from famulus_server.ports.hints import (
    STOP,
    WORK,
    Hints,
    events_topic,
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
from famulus_server.ports.store import (
    Assistants,
    Claimed,
    Cursor,
    Lease,
    Messages,
    RequestIds,
    RequestKey,
    RunFilter,
    Runs,
    Secrets,
    Steps,
    Store,
    ThreadFilter,
    Threads,
    Transaction,
    Turn,
    Turns,
)
from famulus_server.ports.time import (
    Clock,
    Ids,
)

__all__ = [
    "STOP",
    "WORK",
    "AnnotationChunk",
    "Assistants",
    "CallChunk",
    "Claimed",
    "Clock",
    "Cursor",
    "EventLog",
    "Hints",
    "Ids",
    "Lease",
    "Messages",
    "Model",
    "ModelCard",
    "ModelEvent",
    "ModelRequest",
    "Models",
    "ReasoningChunk",
    "RefusalChunk",
    "RequestIds",
    "RequestKey",
    "Retrying",
    "RunFilter",
    "Runs",
    "Secrets",
    "Steps",
    "Store",
    "TextChunk",
    "ThreadFilter",
    "Threads",
    "Transaction",
    "Turn",
    "TurnEnded",
    "TurnOutcome",
    "Turns",
    "events_topic",
]
