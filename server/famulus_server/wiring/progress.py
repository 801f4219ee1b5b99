"""How what takes long is told."""

from collections.abc import Callable

# A line for whoever waits.
Progress = Callable[[str], None]
