"""Row-level security: whoever asks PostgreSQL sees the rows of one tenant, and can write no others (docs/adr/0023).

Whose rows these are says the setting `famulus.tenant`: '*' is everybody's, '' or none is nobody's. It holds for the
tables' owner as well; only superusers and roles with BYPASSRLS are not bound. SQLite has nothing of the kind.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

# The planner takes IS NOT NULL to be true of nearly all rows, as it is here of those that queries ask for: plans stay
# what they are without the policy.
_VISIBLE = "NULLIF(NULLIF(current_setting('famulus.tenant', true), '') IN (tenant, '*'), false) IS NOT NULL"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    tables = sa.inspect(op.get_bind())
    for name in tables.get_table_names():
        if any(column["name"] == "tenant" for column in tables.get_columns(name)):
            op.execute(f'ALTER TABLE "{name}" ENABLE ROW LEVEL SECURITY')
            op.execute(f'ALTER TABLE "{name}" FORCE ROW LEVEL SECURITY')
            op.execute(f'CREATE POLICY tenants ON "{name}" USING ({_VISIBLE}) WITH CHECK ({_VISIBLE})')
