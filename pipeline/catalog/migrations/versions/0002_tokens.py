"""Tokens, and the projects that each of them opens."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("all_projects", sa.Boolean, nullable=False),
        sa.Column("may_write", sa.Boolean, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("used_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_token"),
        sa.UniqueConstraint("hash", name="uq_token_hash"),
    )
    op.create_table(
        "token_project",
        sa.Column("token_id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("token_id", "project_id", name="pk_token_project"),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], ondelete="CASCADE", name="fk_token_project_token_id"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE", name="fk_token_project_project_id"),
    )
