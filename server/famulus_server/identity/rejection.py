"""Why somebody is not let in."""


class Rejected(Exception):
    """The credentials are not accepted. The text is for our log alone, and has nothing of them in it."""


class KeysMissing(Exception):
    """An issuer's keys could never be had: nobody can tell whether its tokens are good. The text names it."""
