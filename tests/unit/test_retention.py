"""What the catalog forgets and what it keeps: SQLite, and PostgreSQL where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from sqlalchemy import func, insert, select

from gateway import ingest
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, CatalogUnavailable, Observed, Worktree, retention, tables
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Look, Stamp
from pipeline.reconciler.readers.catalog import read
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources import retention as keeping
from tests.laws.looks import CLOCK, WALL, store

DAY = 86_400_000
WEB = worktree_id("/srv/web")


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").database()
    else:
        (tmp_path / "home").mkdir(mode=0o700)
        url = f"sqlite:///{tmp_path}/home/treewire.db"
    found = catalogs.open_url(url)
    found.add_project("/srv/web", 1)
    yield found
    found.close()


def event(workspace: str, group: str, at: int, days: int = 0, **fields: Any) -> Observed:
    return Observed("web", workspace, group, fields, Stamp(at, at, CLOCK), days * DAY, producer="test")


def born(catalog: Catalog, name: str, at: int, days: int = 0) -> Look:
    made = [
        event(name, "life", at, days, name=name, phase="ready"),
        event(name, "session:s", at + 1, days, state="idle"),
    ]
    made.append(event(name, "pr", at + 1, days, number=1))
    look = catalog.record(made)[0]
    assert look is not None
    return look


def archive(catalog: Catalog, name: str, at: int, days: int) -> Look:
    look = catalog.archive_workspace(name, Stamp(at, at, CLOCK), days * DAY)
    assert look is not None
    return look


def rows(catalog: Catalog) -> dict[str, int]:
    """How many rows of each table."""
    with catalog.database.read() as tx:
        return {
            name: tx.scalar(select(func.count()).select_from(table)) for name, table in tables.METADATA.tables.items()
        }  # type: ignore[misc]


def tree() -> Worktree:
    return Worktree("/srv/web", "main", "/srv/web/.git", "/srv/web/.git", 1, "main")


def test_what_was_archived_long_ago_is_forgotten_with_all_that_was_known_of_it(catalog: Catalog) -> None:
    """O3: and what lives, or was archived lately, is kept."""
    before = rows(catalog)
    for n, name in enumerate(("old", "lately", "lives")):
        born(catalog, name, 10 * n + 1)
    archive(catalog, "old", 50, days=10)
    archive(catalog, "lately", 51, days=40)
    assert catalog.forget(39 * DAY) == 1
    assert {one.id for one in catalog.workspaces(archived=True)} == {"lately", "lives"}
    after = rows(catalog)
    assert (after["session"], after["pull_request"], after["project"]) == (2, 2, before["project"])
    assert catalog.forget(39 * DAY) == 0


def test_however_many_come_and_go_the_catalog_has_the_same_number_of_rows(catalog: Catalog) -> None:
    """O3."""
    counts = []
    for day in range(1, 40):
        for n in range(5):
            born(catalog, f"w{day}-{n}", 1000 * day + n, day)
            archive(catalog, f"w{day}-{n}", 1000 * day + 500 + n, day)
        catalog.forget((day - 3) * DAY)
        counts.append(sum(rows(catalog).values()))
    assert len(set(counts[5:])) == 1


def test_one_that_was_archived_by_hand_stays_so_for_as_long_as_its_worktree_is_there(catalog: Catalog) -> None:
    catalog.upsert_worktrees("web", [tree()], Stamp(10, 20, CLOCK), DAY)
    archive(catalog, WEB, 30, days=1)
    assert catalog.forget(100 * DAY) == 0
    assert catalog.upsert_worktrees("web", [tree()], Stamp(40, 50, CLOCK), 2 * DAY) == []
    catalog.upsert_worktrees("web", [], Stamp(60, 70, CLOCK), 3 * DAY)
    assert catalog.forget(100 * DAY) == 1


def test_what_returns_after_it_was_forgotten_is_not_taken_for_what_is_buried(catalog: Catalog) -> None:
    """S1, S5: the aggregator still remembers it as gone, and the catalog does not remember it at all."""
    s = store()
    s.admit(born(catalog, "w", 5), WALL)
    for n in range(3):
        s.admit(archive(catalog, "w", 10 * n + 10, days=1), WALL)
        s.admit(born(catalog, "w", 10 * n + 15, days=1), WALL)
    assert s.entries["w"].incarnation == 4
    stray = catalog.record([event("w", "session:s", 41, state="working")])[0]
    s.admit(archive(catalog, "w", 50, days=1), WALL)
    catalog.upsert_worktrees("web", [tree()], Stamp(51, 52, CLOCK), DAY)
    assert catalog.forget(2 * DAY) == 1
    assert catalog.record([event("w", "session:s", 55, state="working")]) == [None]  # there is no such workspace
    look = born(catalog, "w", 60)
    assert look.incarnation == 5
    assert s.admit(look, WALL).verdict == "applied"
    assert stray is not None
    assert s.admit(stray, WALL).verdict == "old_incarnation"
    s.census(read(catalog, lambda: 90, CLOCK).census, WALL)
    assert set(s.entries) == {"w", WEB}


def test_a_worktree_that_is_found_after_others_were_forgotten_begins_above_them(catalog: Catalog) -> None:
    born(catalog, "w", 5)
    archive(catalog, "w", 10, days=1)
    catalog.forget(2 * DAY)
    (look,) = catalog.upsert_worktrees("web", [tree()], Stamp(20, 30, CLOCK), DAY)
    assert look.incarnation == 2


def test_a_project_that_was_removed_long_ago_goes_with_what_was_in_it(catalog: Catalog) -> None:
    catalog.upsert_worktrees("web", [tree()], Stamp(10, 20, CLOCK), DAY)
    archive(catalog, WEB, 30, days=1)
    catalog.add_project("/srv/api", 1)
    catalog.remove_project("web", Stamp(40, 40, CLOCK), 5 * DAY)
    assert catalog.forget(5 * DAY) == 0
    assert catalog.forget(6 * DAY) == 2
    assert {name: count for name, count in rows(catalog).items() if count} == {
        "meta": rows(catalog)["meta"],
        "project": 1,
    }
    added = catalog.add_project("/srv/web", 7 * DAY)
    assert (added.project.id, added.new) == ("web", True)


def test_only_so_much_is_forgotten_in_one_transaction_and_all_in_the_end(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events wait for no longer than a few rows take."""
    monkeypatch.setattr(retention, "MOST", 3)
    for n in range(8):
        born(catalog, f"w{n}", n + 1)
        archive(catalog, f"w{n}", n + 100, days=1)
    with catalog.database.write() as tx:
        assert retention.forget(tx, 2 * DAY, 3) == 3
    assert catalog.forget(2 * DAY) == 5
    assert rows(catalog)["workspace"] == 0


async def test_it_is_done_again_and_again_and_a_catalog_that_is_away_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    answers = iter([CatalogUnavailable("away"), 0, 4, 3])

    def forget(before_ms: int) -> int:
        told.append(before_ms)
        answer = next(answers, 0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    figures: dict[str, int] = {}
    settings = SimpleNamespace(database=SimpleNamespace(keep_archived_days=0.05 / keeping.DAY_S))
    log = SimpleNamespace(info=lambda *_, **__: None)
    process: Any = SimpleNamespace(settings=settings, figures=figures, log=log)
    monkeypatch.setattr(keeping, "wall_ms", lambda: 1_000_000)
    task = asyncio.create_task(keeping.keep(process, SimpleNamespace(forget=forget)))  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while figures.get("forgotten") != 7:
            await asyncio.sleep(0.001)
    task.cancel()
    assert set(told) == {1_000_000 - 50}


def test_the_gateway_does_not_remember_every_workspace_that_ever_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3: which workspace is of which project is looked up again before most of them are former ones."""
    monkeypatch.setattr(ingest, "MORE_KNOWN", 20)
    settings = Settings.load(tmp_path / "home", environ={"HOME": str(tmp_path)})
    with catalogs.open(settings).database.write() as tx:
        tx.execute(insert(tables.project).values(id="web", name="web", path="/srv/web", base="", created_ms=1))
    recorder = ingest.Recorder(settings, structlog.get_logger())

    async def report() -> None:
        known = []
        for n in range(30):
            told = [
                {"project": "web", "workspace": f"w{n}-{i}", "group": "life", "fields": {"name": "one"}}
                for i in range(5)
            ]
            written = await recorder.take(told)
            assert (len(written.looks), written.lost) == (5, [])
            await recorder.take([{**one, "fields": {"phase": "archived"}} for one in told])
            recorder.open().forget(wall_ms() + DAY)
            known.append(len(recorder._known))
        assert max(known) <= 2 * 20 + 5
        gone = {"project": "web", "workspace": "w0-0", "group": "session:s", "fields": {"state": "idle"}}
        with pytest.raises(ingest.Refused):
            await recorder.take([gone])

    try:
        asyncio.run(report())
    finally:
        recorder.close()
