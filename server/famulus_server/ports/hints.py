"""The port to hints between replicas: they save the time until somebody would have looked anyway (contract 2, 9)."""

from collections.abc import Callable
from typing import Protocol

WORK = "work"
"""The topic on which replicas tell that a run waits for a worker."""
STOP = "stop"
"""The topic on which replicas tell that a run was cancelled, or its thread deleted; the text is the run's id."""


def events_topic(run_id: str) -> str:
    """The topic on which the EventLog tells that there are new events of a run."""
    return f"events:{run_id}"


class Hints(Protocol):
    """Short messages to all replicas, this one included. They may be lost, late or doubled: whoever hears one looks at
    the truth, and looks there now and then without having heard anything."""

    def send(self, topic: str, text: str = "") -> None:
        """Tells whoever listens to the topic, soon; returns at once and raises nothing. Equal hints that wait to be
        sent are one."""

    def listen(self, topic: str, heard: Callable[[str], None]) -> Callable[[], None]:
        """From now on `heard` is called, in the event loop, with the text of each hint; what this returns ends that.

        It is called with an empty text when hints may have been missed: once the first listener of a topic is
        connected, and after each interruption. So whoever listens first and looks then misses nothing for long.
        """
