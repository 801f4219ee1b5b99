"""The one error of this package; it does not leave it."""


class RedisUnavailable(Exception):
    """Redis is away, hangs, or refuses. The text is for the log and holds neither secrets nor content."""
