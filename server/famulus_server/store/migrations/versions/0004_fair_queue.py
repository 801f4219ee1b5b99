"""What a fair queue goes by: the order within a tenant, runs that are parked, and how fast a tenant's runs start.

`queue_time` is when a run was created, and the delay of its priority behind that. `wake_time` is when a parked run goes
on, 0 for all others. `start_time` is when a worker first started on a run, NULL for those from before this migration.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("runs", sa.Column("queue_time", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("wake_time", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("start_time", sa.BigInteger))
    # The delay of the priority that all runs have until now. Those that have ended wait no more.
    op.execute("UPDATE runs SET queue_time = create_time + 5000000 WHERE state IN (1, 2, 3, 4)")
    op.drop_index("runs_waiting", "runs")
    index_where("runs_waiting", ["tenant", "queue_time", "id"], "state = 1 AND active AND wake_time = 0")
    index_where("runs_parked", ["wake_time"], "wake_time > 0")
    # QUEUED as well, but nobody's to claim: in line, or parked.
    index_where("runs_held", ["tenant"], "state = 1 AND (NOT active OR wake_time > 0)")
    index_where("runs_started", ["tenant", "start_time"], "start_time IS NOT NULL")


def index_where(name: str, columns: list[str], condition: str) -> None:
    """An index over those runs only that fulfil a condition."""
    where = sa.text(condition)
    op.create_index(name, "runs", columns, sqlite_where=where, postgresql_where=where)
