"""How long threads are kept, whose messages live on in forks, and deletions of users' data.

Of a thread from before this migration, the last activity stands in for `create_time`: it goes later, never earlier.
`keep_after_create` and `keep_after_activity` are microseconds, and NULL, as `completes` is, where the thread does not
say; `own_end` is the first of the ends that they make, a column because no index on a sum is used below a policy of
PostgreSQL. A tombstone has a `user_id` as long as forks show messages of the thread. A deletion is about threads that
were created `until` then: the time of the last call that asked for it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

OWN_END = """
CASE WHEN keep_after_activity IS NULL OR create_time + keep_after_create <= last_activity + keep_after_activity
     THEN create_time + keep_after_create ELSE last_activity + keep_after_activity END
"""


def upgrade() -> None:
    op.add_column("threads", sa.Column("create_time", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("threads", sa.Column("keep_after_create", sa.BigInteger))
    op.add_column("threads", sa.Column("keep_after_activity", sa.BigInteger))
    op.add_column("threads", sa.Column("completes", sa.Boolean))
    op.execute("UPDATE threads SET create_time = last_activity")
    # SQLite can add only one that is computed when it is read; both can index it.
    is_stored = op.get_bind().dialect.name == "postgresql"
    op.add_column("threads", sa.Column("own_end", sa.BigInteger, sa.Computed(OWN_END.strip(), persisted=is_stored)))
    alive = "deleted_time IS NULL"
    index_where("threads_by_creation", "threads", ["tenant", "create_time"], alive)
    index_where("threads_by_own_end", "threads", ["own_end"], f"{alive} AND own_end IS NOT NULL")
    index_where("threads_completing", "threads", ["create_time"], f"{alive} AND completes")
    index_where("threads_by_owner", "threads", ["tenant", "user_id", "id"], "user_id <> ''")
    index_where("threads_deleted", "threads", ["deleted_time"], "deleted_time IS NOT NULL")
    op.create_table(
        "deletions",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("done", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    index_where("deletions_of_user", "deletions", ["tenant", "user_id"], "user_id <> ''", unique=True)
    index_where("deletions_under_way", "deletions", ["create_time"], "NOT done")


def index_where(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    """An index over those rows only that fulfil a condition."""
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)
