"""What is wrong with settings."""


class ConfigError(Exception):
    """A wrong setting: where it stands, which one, and what is wrong."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"{source}: {key}: {reason}" if key else f"{source}: {reason}")
