"""Alembic's entry: runs the revisions on the connection (and in the transaction) that `migrate` hands over."""

from alembic import context

from pipeline.catalog.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, transactional_ddl=True)
context.run_migrations()
