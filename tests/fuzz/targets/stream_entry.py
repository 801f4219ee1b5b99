"""What Redis gives back as events of a run."""

from famulus.v1.message_pb2 import Message
from famulus.v1.run_event_pb2 import MessageStarted, RunEvent, TextDelta
from famulus_server.coordination.errors import RedisUnavailable
from famulus_server.coordination.streams import _parse

_SEEDS = (
    RunEvent(sequence=1, text_delta=TextDelta(message_id="msg_1", part_index=0, text="x")),
    RunEvent(sequence=2**40, message_started=MessageStarted(message=Message(id="msg_1"))),
)
SEEDS = [event.SerializeToString() for event in _SEEDS]


def try_input(data: bytes) -> None:
    try:
        [event] = _parse([data])
    except RedisUnavailable:
        return
    # As it is sent on.
    event.SerializeToString()
