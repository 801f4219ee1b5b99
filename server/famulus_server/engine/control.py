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
        self._task: asyncio.Task[None] | None = None

    def interrupt(self, why: Interruption) -> None:
        """Stops the model turn under way. The first reason counts; of later ones only that the run is lost."""
        if self._why is None:
            self._why = why
            if self._task is not None:
                self._task.cancel()
        elif why is Interruption.LEASE_LOST:
            self._why = why

    @property
    def why(self) -> Interruption | None:
        """What has interrupted the execution."""
        return self._why

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
