"""The reconciler as a real process beside a real aggregator and a real catalog: what heals, and what never harms."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from benchmarks import deployment
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, Observed
from pipeline.domain.model import Stamp
from pipeline.follow import Follower
from pipeline.runtime.beat import Beat, read_beat
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from tests import gitkit


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("TREEWIRE_RECONCILER__POLL_MS", "50")
    monkeypatch.setenv("TREEWIRE_RECONCILER__MIN_GAP_MS", "200")
    monkeypatch.setenv("TREEWIRE_RECONCILER__EVERY_S", "1")
    with deployment.home() as settings:
        yield settings


@pytest.fixture
def catalog(settings: Settings, tmp_path: Path) -> Iterator[Catalog]:
    """A project with seven workspaces that an orchestrator announced."""
    repository = gitkit.make_repo(tmp_path / "web", {"a.txt": "a\n"})
    catalog = catalogs.open(settings)
    catalog.add_project(repository, wall_ms())
    for n in range(7):
        announce(catalog, f"w{n}")
    yield catalog
    catalog.close()


def announce(catalog: Catalog, workspace: str, **fields: str) -> None:
    now = now_ns()
    values = {"name": workspace, "phase": "ready", **fields}
    [look] = catalog.record([Observed("web", workspace, "life", values, Stamp(now, now, CLOCK), wall_ms())])
    assert look is not None


@asynccontextmanager
async def followed(settings: Settings, *names: str) -> AsyncIterator[Follower]:
    with ExitStack() as running:
        for name in names:
            running.enter_context(deployment.process(name, settings))
        follower = Follower(settings.run_dir)
        try:
            yield follower
        finally:
            follower.close()


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        await asyncio.sleep(0.02)


def shown(follower: Follower) -> dict[str, dict[str, dict[str, object]]]:
    replica = follower.replicas.get("web")
    return replica.ledger.state() if replica is not None and replica.ledger is not None else {}


def beat(settings: Settings, name: str) -> Beat:
    found = read_beat(settings.run_dir / f"{name}.beat")
    return found or Beat(name=name, pid=0, boot_ns=0, started_ns=0)


def degraded(settings: Settings) -> bool:
    return beat(settings, "reconciler").state == "degraded"


def censuses(settings: Settings) -> int:
    return int(beat(settings, "reconciler").figures.get("censuses", 0))


EVERYBODY = {f"w{n}" for n in range(7)}


async def test_the_store_rebuilds_from_the_catalog_at_the_start(settings: Settings, catalog: Catalog) -> None:
    async with followed(settings, "reconciler", "aggregator") as follower:
        await until(lambda: set(shown(follower)) == EVERYBODY)
        await until(lambda: follower.replicas["web"].complete)


async def test_what_somebody_else_writes_is_healed_soon_and_counted_as_drift(
    settings: Settings, catalog: Catalog
) -> None:
    async with followed(settings, "aggregator", "reconciler") as follower:
        await until(lambda: set(shown(follower)) == EVERYBODY)
        announce(catalog, "w3", branch="renamed")
        await until(lambda: shown(follower)["w3"]["life"].get("branch") == "renamed", 5)
        await until(lambda: beat(settings, "aggregator").figures.get("drift") == 1)
        now = now_ns()
        catalog.archive_workspace("w4", Stamp(now, now, CLOCK), wall_ms())
        await until(lambda: set(shown(follower)) == EVERYBODY - {"w4"}, 5)


async def test_a_new_aggregator_is_told_everything_again(settings: Settings, catalog: Catalog) -> None:
    async with followed(settings, "reconciler") as follower:
        with deployment.process("aggregator", settings) as first:
            await until(lambda: set(shown(follower)) == EVERYBODY)
            epoch = follower.epoch
            first.kill()
        with deployment.process("aggregator", settings):
            await until(lambda: follower.epoch != epoch)
            await until(lambda: follower.replicas["web"].epoch == follower.epoch)
            assert set(shown(follower)) == EVERYBODY
            assert follower.replicas["web"].complete


async def test_a_locked_database_keeps_the_last_good_and_says_so(settings: Settings, catalog: Catalog) -> None:
    async with followed(settings, "aggregator") as follower:
        with deployment.process("reconciler", settings):
            await until(lambda: set(shown(follower)) == EVERYBODY)
        catalog.close()
        holder = sqlite3.connect(settings.home / "treewire.db", isolation_level=None)
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with deployment.process("reconciler", settings):
            await until(lambda: degraded(settings))
            assert "locked" in str(beat(settings, "reconciler").figures["reason"])
            assert set(shown(follower)) == EVERYBODY
            holder.close()
            await until(lambda: beat(settings, "reconciler").state == "running")
            announce(catalog, "late")
            await until(lambda: "late" in shown(follower))


async def test_a_missing_database_keeps_the_last_good_and_is_read_again_when_it_is_back(
    settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    async with followed(settings, "aggregator", "reconciler") as follower:
        await until(lambda: set(shown(follower)) == EVERYBODY)
        catalog.close()
        for name in ("treewire.db", "treewire.db-wal", "treewire.db-shm"):
            if (settings.home / name).exists():
                os.rename(settings.home / name, tmp_path / name)
        await until(lambda: degraded(settings))
        version = follower.replicas["web"].version(follower.epoch)
        assert set(shown(follower)) == EVERYBODY
        assert follower.replicas["web"].version(follower.epoch) == version
        for name in ("treewire.db-shm", "treewire.db-wal", "treewire.db"):
            if (tmp_path / name).exists():
                shutil.copy(tmp_path / name, settings.home / name)
        await until(lambda: not degraded(settings))
        announce(catalog, "late")
        await until(lambda: "late" in shown(follower))


async def test_another_database_in_its_place_deletes_nothing_in_mass(
    settings: Settings, catalog: Catalog, tmp_path: Path
) -> None:
    async with followed(settings, "aggregator", "reconciler") as follower:
        await until(lambda: set(shown(follower)) == EVERYBODY)
        other = Settings.load(tmp_path / "other", environ={})
        other.home.mkdir()
        fresh = catalogs.open(other)
        fresh.add_project(tmp_path / "web", wall_ms())
        announce(fresh, "stranger")
        fresh.close()
        with closing(sqlite3.connect(other.home / "treewire.db")) as copier:
            copier.execute(f"VACUUM INTO '{tmp_path / 'fresh.db'}'")
        catalog.close()
        for name in ("treewire.db-wal", "treewire.db-shm"):
            (settings.home / name).unlink(missing_ok=True)
        os.replace(tmp_path / "fresh.db", settings.home / "treewire.db")
        await until(lambda: "stranger" in shown(follower))
        taken = censuses(settings)
        await until(lambda: censuses(settings) >= taken + 3, 30)
        assert set(shown(follower)) == EVERYBODY | {"stranger"}
        await until(lambda: beat(settings, "aggregator").state == "degraded")


async def test_a_shrunken_database_must_say_so_twice(settings: Settings, catalog: Catalog) -> None:
    async with followed(settings, "aggregator", "reconciler") as follower:
        await until(lambda: set(shown(follower)) == EVERYBODY)
        with catalog.database.write() as tx:
            tx.exec_driver_sql("DELETE FROM workspace WHERE id != 'w0'")
        await until(lambda: set(shown(follower)) == {"w0"})
        await until(lambda: "mass delete held" in (settings.home / "aggregator.out").read_text())


async def test_it_ends_well_on_term_and_writes_nothing_into_the_catalog(settings: Settings, catalog: Catalog) -> None:
    with catalog.database.read() as tx:
        before = tx.exec_driver_sql("SELECT id, revision FROM workspace ORDER BY id").all()
    with deployment.process("aggregator", settings), deployment.process("reconciler", settings) as running:
        await until(lambda: censuses(settings) >= 1)
        running.terminate()
        assert await asyncio.to_thread(running.wait, 10) == 0
    with catalog.database.read() as tx:
        assert tx.exec_driver_sql("SELECT id, revision FROM workspace ORDER BY id").all() == before
