"""The first tables: projects, workspaces, and a table for each group that is not measured."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _observed() -> list[sa.Column[object]]:
    return [
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("observed_began", sa.BigInteger, nullable=False),
        sa.Column("observed_ended", sa.BigInteger, nullable=False),
        sa.Column("observed_clock", sa.Text, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger),
        sa.Column("producer", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger),
    ]


def _group(name: str, *columns: sa.Column[object], key: tuple[str, ...] = ("workspace_id",)) -> None:
    op.create_table(
        name,
        sa.Column("workspace_id", sa.Text, nullable=False),
        *columns,
        *_observed(),
        sa.PrimaryKeyConstraint(*key, name=f"pk_{name}"),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], ondelete="CASCADE", name=f"fk_{name}_workspace_id"),
    )


def upgrade() -> None:
    meta = op.create_table(
        "meta",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_meta"),
    )
    op.bulk_insert(meta, [{"name": "identity", "value": uuid.uuid4().hex}])
    op.create_table(
        "project",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("removed_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_project"),
        sa.UniqueConstraint("path", name="uq_project_path"),
    )
    op.create_table(
        "workspace",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("incarnation", sa.Integer, nullable=False),
        sa.Column("path", sa.Text),
        sa.Column("git_dir", sa.Text),
        sa.Column("common_dir", sa.Text),
        sa.Column("inode", sa.String(20)),
        sa.Column("present", sa.Boolean),
        sa.Column("revision_floor", sa.BigInteger, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("phase", sa.Text),
        sa.Column("branch", sa.Text),
        sa.Column("base", sa.Text),
        *_observed(),
        sa.PrimaryKeyConstraint("id", name="pk_workspace"),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], ondelete="CASCADE", name="fk_workspace_project_id"),
    )
    op.create_index("ix_workspace_project_id", "workspace", ["project_id"])
    op.create_index("ix_workspace_path", "workspace", ["path"])
    _group(
        "session",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("waiting_for", sa.Text),
        sa.Column("crashed", sa.Boolean),
        key=("workspace_id", "id"),
    )
    _group(
        "pull_request",
        sa.Column("number", sa.BigInteger),
        sa.Column("url", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("review", sa.Text),
        sa.Column("mergeable", sa.Text),
        sa.Column("health", sa.Text),
        sa.Column("head", sa.Text),
    )
    _group(
        "checks",
        sa.Column("state", sa.Text),
        sa.Column("passed", sa.BigInteger),
        sa.Column("failed", sa.BigInteger),
        sa.Column("pending", sa.BigInteger),
        sa.Column("health", sa.Text),
        sa.Column("pr", sa.BigInteger),
        sa.Column("head", sa.Text),
    )
    _group(
        "ratchet",
        sa.Column("enabled", sa.Boolean),
        sa.Column("state", sa.Text),
        sa.Column("stalled", sa.Boolean),
        sa.Column("iterating", sa.Boolean),
    )
    _group("terminal", sa.Column("active", sa.Boolean), sa.Column("last_output", sa.BigInteger))
    _group("run_script", sa.Column("state", sa.Text), sa.Column("port", sa.BigInteger))
