"""The audit log: one chain of rows for the whole service, so `tenant` does not come first in its key.

`body` is the whole entry as JSON; `hash` is over it, `number`, and the hash of the row before. Rows are never changed
nor removed: triggers refuse that, whoever tries.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_index("audit_log_ids", "audit_log", ["id"], unique=True)
    op.create_index("audit_log_of_tenant", "audit_log", ["tenant", "number"])
    refuse = refuse_on_postgres if op.get_bind().dialect.name == "postgresql" else refuse_on_sqlite
    refuse()


def refuse_on_sqlite() -> None:
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_log_no_{change.lower()} BEFORE {change} ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit log can only grow'); END"
        )


def refuse_on_postgres() -> None:
    op.execute(
        "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit log can only grow'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()"
    )
