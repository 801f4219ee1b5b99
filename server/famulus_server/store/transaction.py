"""What a unit of work sees of the store, over any session."""

from famulus_server.store.assistants import SqlAssistants
from famulus_server.store.deletions import SqlDeletions
from famulus_server.store.messages import SqlMessages
from famulus_server.store.requests import SqlRequestIds
from famulus_server.store.runs import SqlRuns
from famulus_server.store.secrets import SqlSecrets
from famulus_server.store.session import Session
from famulus_server.store.steps import SqlSteps
from famulus_server.store.threads import SqlThreads
from famulus_server.store.turns import SqlTurns
from famulus_server.store.usage import SqlUsages


class SqlTransaction:
    """See `ports.Transaction`."""

    def __init__(self, session: Session) -> None:
        self.requests = SqlRequestIds(session)
        self.assistants = SqlAssistants(session)
        self.threads = SqlThreads(session)
        self.messages = SqlMessages(session)
        self.runs = SqlRuns(session)
        self.steps = SqlSteps(session)
        self.turns = SqlTurns(session)
        self.usages = SqlUsages(session)
        self.deletions = SqlDeletions(session)
        self.secrets = SqlSecrets(session)
