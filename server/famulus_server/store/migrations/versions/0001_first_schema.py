"""The first schema.

`body` is the serialized message of famulus.v1 (docs/adr/0001); a column exists where something is queried, constrained
or ordered by it. Times are microseconds since 1970. The numbers of run states stand in `queries.sql`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Ids and keys are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    create_assistants()
    create_threads()
    create_messages()
    create_runs()
    create_request_ids()


def create_assistants() -> None:
    op.create_table(
        "assistants",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("config_hash", sa.LargeBinary),
    )
    op.create_index("assistants_by_time", "assistants", ["tenant", "create_time", "id"])
    index_where("assistants_config", "assistants", ["tenant", "config_hash"], "config_hash IS NOT NULL", unique=True)
    op.create_table(
        "assistant_versions",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("assistant_id", TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def create_threads() -> None:
    op.create_table(
        "threads",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("last_activity", sa.BigInteger, nullable=False),
        sa.Column("next_sequence", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("deleted_time", sa.BigInteger),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    alive = "deleted_time IS NULL"
    index_where("threads_by_activity", "threads", ["tenant", "last_activity", "id"], alive)
    index_where("threads_of_user", "threads", ["tenant", "user_id", "last_activity", "id"], alive)
    op.create_table(
        "thread_metadata",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("thread_id", TEXT, primary_key=True),
        sa.Column("key", TEXT, primary_key=True),
        sa.Column("value", TEXT, nullable=False),
    )
    op.create_index("thread_metadata_pairs", "thread_metadata", ["tenant", "key", "value"])
    op.create_table(
        "thread_segments",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("thread_id", TEXT, primary_key=True),
        sa.Column("from_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("upto_sequence", sa.BigInteger, nullable=False),
        sa.Column("log_id", TEXT, nullable=False),
    )
    op.create_index("thread_segments_of_log", "thread_segments", ["tenant", "log_id", "thread_id"], unique=True)


def create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("log_id", TEXT, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("tenant", "id"),
    )
    index_where("messages_of_run", "messages", ["tenant", "run_id"], "run_id <> ''")
    op.create_table(
        "message_overrides",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("thread_id", TEXT, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("thread_id", TEXT, nullable=False),
        sa.Column("assistant_id", TEXT, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("lease_owner", TEXT),
        sa.Column("lease_expire_time", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    # Contract 6: at most one active run on a thread.
    index_where("runs_active", "runs", ["tenant", "thread_id"], "active", unique=True)
    op.create_index("runs_by_time", "runs", ["tenant", "create_time", "id"])
    op.create_index("runs_of_thread", "runs", ["tenant", "thread_id", "create_time", "id"])
    op.create_index("runs_of_assistant", "runs", ["tenant", "assistant_id", "create_time", "id"])
    index_where("runs_waiting", "runs", ["create_time", "id"], "state = 1")
    index_where("runs_leased_until", "runs", ["lease_expire_time"], "lease_expire_time IS NOT NULL")
    index_where("runs_leased_by", "runs", ["lease_owner"], "lease_owner IS NOT NULL")
    index_where("runs_unwatched", "runs", ["expire_time"], "state IN (1, 3)")
    op.create_table(
        "run_steps",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("tenant", "run_id", "id"),
    )
    op.create_table(
        "run_turns",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seen_sequence", sa.BigInteger, nullable=False),
        sa.Column("items", sa.LargeBinary, nullable=False),
    )


def create_request_ids() -> None:
    op.create_table(
        "request_ids",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("method", TEXT, primary_key=True),
        sa.Column("request_id", TEXT, primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("resource_id", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("request_ids_by_time", "request_ids", ["create_time"])
    op.create_table(
        "secrets",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )


def index_where(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    """An index over those rows only that fulfil a condition."""
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)
