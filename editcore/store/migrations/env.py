"""How Alembic reaches the store: over the connection it is given, in one transaction."""

from __future__ import annotations

from alembic import context

from editcore.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
