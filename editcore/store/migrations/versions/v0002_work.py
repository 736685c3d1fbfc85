"""What a job was asked, so that one that was cut off can be run again; and a name for the database itself."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A column for the work, and a table with one row."""
    op.add_column("jobs", sa.Column("work", sa.Text, nullable=False, server_default=""))
    about = op.create_table("about", sa.Column("id", sa.String(32), primary_key=True))
    op.execute(about.insert().values(id=secrets.token_hex(8)))


def downgrade() -> None:
    """Back to the first tables."""
    op.drop_table("about")
    op.drop_column("jobs", "work")
