"""The keys that bodies are sealed with, each wrapped by the operator's key (docs/adr/0024).

`scope_id` is a thread's id, or '' for all of a tenant that has no key of its own. The one key of a scope that is not
retired seals; the others only open. Whoever deletes a key erases what it sealed, in every copy of the database.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "data_keys",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("id", TEXT, primary_key=True),
        sa.Column("scope_id", TEXT, nullable=False),
        sa.Column("kek_id", TEXT, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("retire_time", sa.BigInteger),
    )
    op.create_index("data_keys_by_kek", "data_keys", ["kek_id"])
    op.create_index("data_keys_of_scope", "data_keys", ["tenant", "scope_id"])
    index_where("data_keys_in_use", ["tenant", "scope_id"], "retire_time IS NULL", unique=True)
    index_where("data_keys_retired", ["retire_time"], "retire_time IS NOT NULL")


def index_where(name: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    """An index over those keys only that fulfil a condition."""
    where = sa.text(condition)
    op.create_index(name, "data_keys", columns, unique=unique, sqlite_where=where, postgresql_where=where)
