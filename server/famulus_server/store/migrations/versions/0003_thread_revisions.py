"""How often messages of a thread were changed or removed: what is remembered of a thread elsewhere holds while this
number stands (contract 2)."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("threads", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
