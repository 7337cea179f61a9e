"""Which agent of a session waits, and with which tool: what ends the wait has to know."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("session", sa.Column("waiting_by", sa.Text))
    op.add_column("session", sa.Column("waiting_tool", sa.Text))
