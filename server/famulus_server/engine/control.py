"""The outside's grip on a run that is being executed."""

import asyncio
import contextlib
from collections.abc import Iterator
from enum import Enum


class Interruption(Enum):
    """Why a worker stops working on a run."""

    CANCEL = "cancel"  # the caller asked; the store knows
    LEASE_LOST = "lease lost"  # the run is somebody else's, or gone
    DRAIN = "drain"  # this process ends; another worker goes on


class Interrupted(Exception):
    """Raised inside an execution when somebody interrupted it."""

    def __init__(self, why: Interruption) -> None:
        super().__init__(why.value)
        self.why = why


class Control:
    """The outside's grip on one execution."""

    def __init__(self) -> None:
        self._why: Interruption | None = None
        self.giving_up = False
        """Whether this worker is to have done with the run, even without having stored what it wants."""
        self._task: asyncio.Task[None] | None = None

    def interrupt(self, why: Interruption) -> None:
        """Stops the model turn under way. The first reason counts; later ones only tell that the run is lost, or to be
        given up."""
        self.giving_up |= why is not Interruption.CANCEL
        if self._why is None:
            self._why = why
            if self._task is not None:
                self._task.cancel()
        elif why is Interruption.LEASE_LOST:
            self._why = why

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within this, an interruption raises Interrupted; elsewhere it waits for the next such place."""
        if self._why is not None:
            raise Interrupted(self._why)
        self._task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self._why is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise Interrupted(self._why) from None
        finally:
            self._task = None
