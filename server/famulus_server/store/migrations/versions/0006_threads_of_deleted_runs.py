"""The threads of runs that were deleted: what is remembered of them may still be somewhere as well (contract 24).

`thread_id` is '' for runs that were deleted before this migration.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("deleted_runs", sa.Column("thread_id", TEXT, nullable=False, server_default=""))
