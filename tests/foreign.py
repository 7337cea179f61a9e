"""Databases as other tools keep them: factory-factory's, from its columns, and one of nobody's for mappings."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

ISO = "2026-11-23T18:19:57.401+00:00"
MS = 1795457997401
MIGRATION = "20260807222320_voice_settings"

SCHEMA = """
CREATE TABLE _prisma_migrations (id TEXT PRIMARY KEY, migration_name TEXT NOT NULL, finished_at DATETIME);
CREATE TABLE Project (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, slug TEXT NOT NULL, repoPath TEXT NOT NULL, worktreeBasePath TEXT NOT NULL,
  defaultBranch TEXT NOT NULL DEFAULT 'main', githubOwner TEXT, githubRepo TEXT,
  isArchived BOOLEAN NOT NULL DEFAULT false, createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL);
CREATE TABLE Workspace (
  id TEXT PRIMARY KEY, projectId TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'NEW',
  worktreePath TEXT, branchName TEXT, initOutput TEXT, createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL,
  hasHadSessions BOOLEAN NOT NULL DEFAULT false);
CREATE TABLE WorkspacePR (
  workspaceId TEXT PRIMARY KEY, url TEXT, number INTEGER, state TEXT NOT NULL DEFAULT 'NONE', reviewState TEXT,
  ciStatus TEXT NOT NULL DEFAULT 'UNKNOWN', hasMergeConflict BOOLEAN NOT NULL DEFAULT false, syncedAt DATETIME);
CREATE TABLE WorkspaceRatchet (
  workspaceId TEXT PRIMARY KEY, enabled BOOLEAN NOT NULL DEFAULT true, activeSessionId TEXT, dispatchOutcome TEXT,
  dispatchRetryCount INTEGER NOT NULL DEFAULT 0, dispatchStalled BOOLEAN NOT NULL DEFAULT false);
CREATE TABLE WorkspaceRunScript (
  workspaceId TEXT PRIMARY KEY, port INTEGER, startedAt DATETIME, status TEXT NOT NULL DEFAULT 'IDLE');
CREATE TABLE WorkspaceAutoIteration (workspaceId TEXT PRIMARY KEY, mode TEXT NOT NULL DEFAULT 'STANDARD', status TEXT);
CREATE TABLE AgentSession (
  id TEXT PRIMARY KEY, workspaceId TEXT NOT NULL, name TEXT, workflow TEXT NOT NULL, model TEXT NOT NULL,
  status TEXT NOT NULL DEFAULT 'IDLE', provider TEXT NOT NULL, providerSessionId TEXT,
  createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL);
CREATE TABLE TerminalSession (
  id TEXT PRIMARY KEY, workspaceId TEXT NOT NULL, name TEXT, status TEXT NOT NULL DEFAULT 'IDLE',
  createdAt DATETIME NOT NULL, updatedAt DATETIME NOT NULL);
"""

SIDE = ("WorkspacePR", "WorkspaceRatchet", "WorkspaceRunScript", "WorkspaceAutoIteration")


class FactoryFactory:
    """A database with one project, written to as the tool does: in a rollback journal, by a connection of its own."""

    def __init__(self, path: Path, repository: str = "/srv/web") -> None:
        self.path = path
        with self.open() as db:
            db.executescript(SCHEMA)
        self.insert("_prisma_migrations", id="1", migration_name=MIGRATION, finished_at=ISO)
        self.insert("_prisma_migrations", id="2", migration_name="20991231_unfinished", finished_at=None)
        self.project("p1", repository)

    def open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=5)

    def run(self, sql: str, *values: Any) -> None:
        db = self.open()
        try:
            with db:
                db.execute(sql, values)
        finally:
            db.close()

    def insert(self, table: str, **values: Any) -> None:
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self.run(f"INSERT INTO {table} ({names}) VALUES ({marks})", *values.values())

    def set(self, table: str, key: str, **values: Any) -> None:
        """Change a row; of a side table by its workspace. The workspace's own ``updatedAt`` stays, as in the tool."""
        column = "workspaceId" if table in SIDE else "id"
        changes = ", ".join(f"{name} = ?" for name in values)
        self.run(f"UPDATE {table} SET {changes} WHERE {column} = ?", *values.values(), key)

    def project(self, name: str, repository: str, /, **more: Any) -> None:
        times = {"createdAt": ISO, "updatedAt": ISO}
        given = {"id": name, "name": name, "slug": name, "repoPath": repository, "worktreeBasePath": "/srv/wt"}
        self.insert("Project", **{**given, **times, **more})

    def workspace(self, name: str, path: str | None = None, /, **more: Any) -> None:
        """A workspace, and its row in each of the tables beside."""
        given = {"id": name, "projectId": "p1", "name": f"Task {name}", "status": "READY", "worktreePath": path}
        times = {"createdAt": ISO, "updatedAt": ISO}
        self.insert("Workspace", **{**given, **times, **more})
        for table in SIDE:
            self.insert(table, workspaceId=name)

    def session(self, name: str, workspace: str, /, **more: Any) -> None:
        given = {"id": name, "workspaceId": workspace, "name": "Chat 1", "workflow": "followup", "model": "opus"}
        given |= {"status": "IDLE", "provider": "CLAUDE", "createdAt": ISO, "updatedAt": ISO}
        self.insert("AgentSession", **{**given, **more})

    def terminal(self, name: str, workspace: str, /, **more: Any) -> None:
        given = {"id": name, "workspaceId": workspace, "status": "IDLE", "createdAt": ISO, "updatedAt": ISO}
        self.insert("TerminalSession", **{**given, **more})
