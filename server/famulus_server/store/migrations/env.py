"""What Alembic runs to migrate: the connection comes from `schema.upgrade`."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    # Both engines can roll schema changes back: a migration that breaks off leaves nothing.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
