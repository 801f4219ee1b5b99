"""Runs that wait in line behind the active one of their thread (contract 6), and runs that were deleted.

`line` is a run's place in line, NULL for all others; its messages wait in `queued_messages` until it starts.
`deleted_runs` has those whose events may still be somewhere (contract 24).
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("runs", sa.Column("line", sa.BigInteger))
    in_line = sa.text("line IS NOT NULL")
    op.create_index(
        "runs_in_line",
        "runs",
        ["tenant", "thread_id", "line", "id"],
        sqlite_where=in_line,
        postgresql_where=in_line,
    )
    # Those in line are QUEUED as well, and nobody's to claim.
    op.drop_index("runs_waiting", "runs")
    waiting = sa.text("state = 1 AND active")
    op.create_index("runs_waiting", "runs", ["create_time", "id"], sqlite_where=waiting, postgresql_where=waiting)
    op.create_table(
        "queued_messages",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "deleted_runs",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("deleted_time", sa.BigInteger, nullable=False),
    )
    op.create_index("deleted_runs_by_time", "deleted_runs", ["deleted_time"])
