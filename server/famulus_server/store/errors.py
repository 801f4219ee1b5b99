"""Why a store cannot be opened. These stop the start of the server; their texts are for the operator.

StoreUnusable
├── StoreInUse          another process has it open
├── SchemaTooNew        a newer version of the server made it
├── NotAStore           the file or database is something else
├── StoreUnreachable    the database server, or the disk, cannot be reached, or refuses us
└── KeysUnusable        what is encrypted cannot be read: no key, or another one

BodyUnreadable is raised later, by whatever reads a row that was tampered with.
"""


class StoreUnusable(Exception):
    """The store cannot be opened."""


class StoreInUse(StoreUnusable):
    """Another process has the database open: the embedded store is for one process."""


class SchemaTooNew(StoreUnusable):
    """The database has a schema that this version of the server does not know."""


class NotAStore(StoreUnusable):
    """The file is no SQLite database, or the database holds tables that are not ours, or is unfit for ours."""


class StoreUnreachable(StoreUnusable):
    """Nobody listens there; no such database or role, a wrong password, a role without rights; a disk that is full."""


class KeysUnusable(StoreUnusable):
    """Rows are encrypted, and the keys that are configured do not open them."""


class BodyUnreadable(Exception):
    """An encrypted body cannot be opened: it was changed, moved from another row, or its key is gone. The text names
    the row, and has nothing of what stands there."""
