"""The sources process beside a real aggregator and a real git repository, reading another tool's database along."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import deployment
from pipeline import catalog as catalogs
from pipeline.catalog.ids import worktree_id
from pipeline.cli import main
from pipeline.follow import Follower
from pipeline.runtime.beat import read_beat
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources import databases
from pipeline.sources.following import Following
from tests import gitkit
from tests.foreign import FactoryFactory
from tests.postgres import Server

CLAUDE = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("TREEWIRE_RECONCILER__EVERY_S", "1")
    monkeypatch.setenv("TREEWIRE_RECONCILER__POLL_MS", "50")
    with deployment.home() as settings:
        yield settings


@pytest.fixture
def worktree(settings: Settings, tmp_path: Path) -> Path:
    repository = gitkit.make_repo(tmp_path / "web", {"a.txt": "a\n"})
    worktree = gitkit.add_worktree(repository, tmp_path / "login", "login")
    catalog = catalogs.open(settings)
    catalog.add_project(repository, wall_ms())
    catalog.close()
    return worktree


@pytest.fixture
def tool(tmp_path: Path, worktree: Path) -> FactoryFactory:
    tool = FactoryFactory(tmp_path / "data.db", str(tmp_path / "web"))
    tool.workspace("w1", str(worktree), name="Add login")
    tool.workspace("w2", name="In a queue", status="PROVISIONING")
    tool.session("s1", "w1", status="RUNNING", providerSessionId=CLAUDE)
    return tool


class Shown:
    """What a follower sees, and what the sources say of themselves."""

    def __init__(self, settings: Settings, follower: Follower) -> None:
        self._settings, self._follower = settings, follower

    def of(self, workspace: str, group: str) -> dict[str, Any]:
        replica = self._follower.replicas.get("web")
        if replica is None or replica.ledger is None:
            return {}
        found: dict[str, Any] = replica.ledger.state().get(workspace, {}).get(group, {})
        return found

    def health(self) -> str:
        beat = read_beat(self._settings.run_dir / "sources.beat")
        return "" if beat is None else str(beat.figures.get("source_foreign", ""))

    async def until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}; sources: {self.health()}"
            await asyncio.sleep(0.02)


def source(settings: Settings, *words: object) -> str:
    done = CliRunner().invoke(main, ["source", *map(str, words), "--home", str(settings.home)])
    assert done.exit_code == 0, done.output
    return done.output


async def test_another_tools_database_is_followed_while_it_changes_breaks_and_is_removed(
    settings: Settings, tool: FactoryFactory, worktree: Path
) -> None:
    login = worktree_id(worktree)
    names = ("aggregator", "reconciler", "sources")
    running = [deployment.process(name, settings) for name in names]
    for process in running:
        process.__enter__()
    follower = Follower(settings.run_dir)
    shown = Shown(settings, follower)
    try:
        await shown.until(lambda: shown.of(login, "life"), "the worktree is not discovered")
        source(settings, "add", "factory-factory", tool.path)
        await shown.until(lambda: shown.of(login, "life").get("name") == "Add login", "it is not attached")
        own = "factory-factory:w2"
        await shown.until(lambda: shown.of(own, "status").get("code") == "setting_up", "the other one is not made")
        await shown.until(lambda: shown.of(login, "sessions"), "its session is not told")
        session = shown.of(login, "sessions")[f"claude-{CLAUDE}"]
        assert (session["state"], session["model"]) == ("unknown", "opus"), "a process that runs need not work"

        tool.set("WorkspacePR", "w1", number=12, state="OPEN", ciStatus="FAILURE", syncedAt=wall_ms())
        await shown.until(lambda: shown.of(login, "ratchet").get("state") == "ci_failed", "a side table is not seen")
        await shown.until(
            lambda: shown.of(login, "status").get("code") == "fixing_ci_failures", "the status is not its"
        )

        tool.run("ALTER TABLE WorkspacePR RENAME COLUMN ciStatus TO checks")
        await shown.until(lambda: "no column ciStatus" in shown.health(), "a schema that drifted is not told")
        assert shown.of(login, "ci")["state"] == "failure", "the last good state stands"
        tool.run("ALTER TABLE WorkspacePR RENAME COLUMN checks TO ciStatus")
        tool.set("WorkspacePR", "w1", ciStatus="SUCCESS", syncedAt=wall_ms())
        await shown.until(lambda: shown.of(login, "ci")["state"] == "success", "it is not read again")

        assert "archived 1" in source(settings, "remove", "factory-factory")
        await shown.until(lambda: not shown.of(own, "life"), "what was there through it alone stays")
        await shown.until(lambda: shown.health().startswith("idle"), "it is still followed")
        assert shown.of(login, "life")["phase"] == "ready"
    finally:
        follower.close()
        for process in reversed(running):
            process.__exit__(None, None, None)


def test_a_database_of_postgresql_is_read_by_a_mapping_and_cannot_be_written(
    settings: Settings, postgresql: Server, worktree: Path, tmp_path: Path
) -> None:
    url = postgresql.database()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql.sql(
        f"""
        CREATE SCHEMA tracker;
        CREATE TABLE tracker.repository (id uuid PRIMARY KEY, checkout text);
        CREATE TABLE tracker.task (id bigint PRIMARY KEY, repo uuid, tree text, title text, state text,
          changed timestamptz, pr int, automated boolean, printed text);
        INSERT INTO tracker.repository VALUES ('00000000-0000-0000-0000-000000000007', '{tmp_path / "web"}');
        INSERT INTO tracker.task VALUES (1, '00000000-0000-0000-0000-000000000007', NULL, repeat('t', 1000000), 'open',
          '2026-11-23 18:19:57+00', 12, true, 'x');
        """,
        name,
    )
    source_text = f"""
        database = "{url}"
        [project]
        table = "tracker.repository"
        id = "id"
        path = "checkout"
        [workspace]
        table = "tracker.task"
        id = "id"
        project = "repo"
        at = "changed"
        name = "title"
        [pr]
        number = "pr"
        state = {{ column = "state", values = {{ open = "open" }} }}
        [ratchet]
        enabled = "automated"
        """
    database = databases.understood("tracker", source_text)
    catalog = catalogs.open(settings)
    seen = Following(database).look(catalog)
    catalog.close()
    values = {look.group: look for look in seen.looks}
    assert values["life"].workspace == "tracker:1"
    assert values["life"].at_ms == 1795457997000
    assert len(values["life"].value.name) == 512
    assert (values["pr"].value.number, values["pr"].value.state) == (12, "open")
    assert values["ratchet"].value.enabled is True
    with (
        databases._postgresql(database) as connection,
        pytest.raises(Exception, match="read-only transaction"),
    ):
        connection.query("DELETE FROM tracker.task RETURNING id", ())
    postgresql.sql("ALTER TABLE tracker.task DROP COLUMN title", name)
    with pytest.raises(databases.Unreadable, match=r"table tracker.task has no column title"):
        databases.read(database)


def test_a_reading_can_write_nothing(tool: FactoryFactory) -> None:
    database = databases.understood("f", databases.of_factory_factory(tool.path))
    before = tool.path.read_bytes()
    with (
        databases._sqlite(database) as connection,
        pytest.raises(sqlite3.OperationalError, match=r"readonly|read-only"),
    ):
        connection.query("DELETE FROM Workspace", ())
    assert tool.path.read_bytes() == before
