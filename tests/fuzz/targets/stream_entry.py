"""What Redis gives back as events of a run."""

from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import MessageStarted, RunEvent, TextDelta
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.streams import _parse
from famulus_server.engine.packing import events_of, fresh, pack

_SEEDS = (
    RunEvent(sequence=1, text_delta=TextDelta(message_id="msg_1", part_index=0, text="x")),
    RunEvent(sequence=2**40, message_started=MessageStarted(message=Message(id="msg_1"))),
)
SEEDS = [batch.payload for batch in pack(_SEEDS)]


def try_input(data: bytes) -> None:
    try:
        batches = _parse([data])
    except RedisUnavailable:
        return
    # As it is sent on, whole or in part.
    assert len(events_of(batches)) == batches[0].count
    fresh(batches, batches[0].first)
