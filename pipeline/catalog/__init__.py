"""The catalog database: what exists, written first and sent second."""

from pipeline.catalog.catalog import Catalog, open, open_url
from pipeline.catalog.database import CatalogUnavailable
from pipeline.catalog.projects import Added, Project
from pipeline.catalog.record import Observed
from pipeline.catalog.tokens import Created, Token, TokenError
from pipeline.catalog.watch import Change, ChangeWatch
from pipeline.catalog.workspaces import Standing, Target, Workspace
from pipeline.catalog.worktrees import Worktree

__all__ = [
    "Added",
    "Catalog",
    "CatalogUnavailable",
    "Change",
    "ChangeWatch",
    "Created",
    "Observed",
    "Project",
    "Standing",
    "Target",
    "Token",
    "TokenError",
    "Workspace",
    "Worktree",
    "open",
    "open_url",
]
