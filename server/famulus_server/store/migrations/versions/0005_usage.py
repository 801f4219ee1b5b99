"""What runs used, and what was spent.

`run_usage` has one row per run that was asked of a model or has ended; it stays when its thread is deleted. `spending`
counts costs in the periods of budgets, of a user or (`user_id` '') of a whole tenant. Times are microseconds since
1970, costs billionths of the currency's unit. The numbers of states and verdicts stand in `queries.sql`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# Ids are compared byte by byte on both engines.
TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "run_usage",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("assistant_id", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("variant", TEXT, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("degraded", sa.Boolean, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("total_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_nanos", sa.BigInteger, nullable=False),
    )
    op.create_index("run_usage_by_time", "run_usage", ["tenant", "create_time"])
    op.create_index("run_usage_of_user", "run_usage", ["tenant", "user_id", "create_time"])
    op.create_table(
        "spending",
        sa.Column("tenant", TEXT, primary_key=True),
        sa.Column("user_id", TEXT, primary_key=True),
        sa.Column("period_start", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("cost_nanos", sa.BigInteger, nullable=False),
    )
