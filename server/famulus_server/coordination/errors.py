"""The one error of this package; only `inspection` lets it out."""


class RedisUnavailable(Exception):
    """Redis is away, hangs, or refuses. The text is for the log and holds neither secrets nor content."""
