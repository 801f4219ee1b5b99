"""What a unit of work sees of the store, over any session."""

from famulus_server.store.assistants import SqlAssistants
from famulus_server.store.audit import SqlAuditLog
from famulus_server.store.bodies import SqlBodies
from famulus_server.store.data_keys import SqlDataKeys
from famulus_server.store.deletions import SqlDeletions
from famulus_server.store.key_cache import KeyCache
from famulus_server.store.messages import SqlMessages
from famulus_server.store.requests import SqlRequestIds
from famulus_server.store.runs import SqlRuns
from famulus_server.store.sealed_bodies import SqlSealedBodies
from famulus_server.store.secrets import SqlSecrets
from famulus_server.store.session import Session
from famulus_server.store.steps import SqlSteps
from famulus_server.store.threads import SqlThreads
from famulus_server.store.turns import SqlTurns
from famulus_server.store.usage import SqlUsages


class SqlTransaction:
    """See `ports.Transaction`. Bodies are sealed where there is a cache of keys; whoever ends the transaction tells
    `keys` how it ended."""

    def __init__(self, session: Session, cache: KeyCache | None = None) -> None:
        self.keys = SqlDataKeys(session, cache)
        bodies = SqlBodies(session, self.keys)
        self.requests = SqlRequestIds(session)
        self.assistants = SqlAssistants(session, bodies)
        self.messages = SqlMessages(session, bodies)
        self.threads = SqlThreads(session, bodies, self.keys, self.messages)
        self.runs = SqlRuns(session, bodies)
        self.steps = SqlSteps(session, bodies)
        self.turns = SqlTurns(session, bodies)
        self.usages = SqlUsages(session)
        self.deletions = SqlDeletions(session)
        self.secrets = SqlSecrets(session)
        self.audit = SqlAuditLog(session)
        self.sealed = SqlSealedBodies(session, bodies)
