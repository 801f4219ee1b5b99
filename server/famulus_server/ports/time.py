"""The ports to time and to new ids."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time."""

    def now(self) -> datetime:
        """Now, in UTC, with microseconds."""


class Ids(Protocol):
    """New ids."""

    def new(self, prefix: str) -> str:
        """`prefix_` and a random part that sorts by time."""
