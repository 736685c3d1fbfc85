"""Sessions, their edits, the log of what was done, readings, jobs and share links."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """The first tables."""

    def session() -> sa.ForeignKey:
        return sa.ForeignKey("sessions.id", ondelete="CASCADE")

    op.create_table(
        "sessions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("cursor", sa.Integer, nullable=False),
        sa.Column("made", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=False, index=True),
        sa.Column("deleted", sa.Float),
        sa.Column("draft", sa.Text, nullable=False),
    )
    op.create_table(
        "edits",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("session", sa.String(64), session(), nullable=False, index=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("blob", sa.String(64), nullable=False, index=True),
        sa.Column("standing", sa.Text, nullable=False),
        sa.Column("reports", sa.Text, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "actions",
        sa.Column("session", sa.String(64), session(), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.Column("stack", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "readings",
        sa.Column("session", sa.String(64), session(), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("print", sa.String(96), primary_key=True),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("session", sa.String(64), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("methods", sa.Text, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table(
        "shares",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("session", sa.String(64), session(), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("shares_of_session", "shares", ["session"])


def downgrade() -> None:
    """Back to nothing."""
    for name in ("shares", "jobs", "readings", "actions", "edits", "sessions"):
        op.drop_table(name)
