"""The catalog in a real PostgreSQL: what may go wrong with a server, and processes that use it together.

What the catalog promises in any database is in tests/unit/test_catalog.py, which runs against both.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from benchmarks import deployment
from gateway.ingest import Recorder
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, CatalogUnavailable, ChangeWatch, Observed, database, tables, watch
from pipeline.domain.model import Stamp
from pipeline.follow import Follower
from pipeline.runtime.beat import read_beat
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from tests.postgres import Server, running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that the tests may stop and start again."""
    with running() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return server.database()


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    catalog = catalogs.open_url(url)
    catalog.add_project("/srv/web", 1)
    yield catalog
    catalog.close()


@pytest.fixture
def watching(catalog: Catalog) -> Iterator[ChangeWatch]:
    watching = ChangeWatch(catalog)
    assert watching.check() == "changed"
    yield watching
    watching.close()


def event(workspace: str, group: str = "life", **fields: object) -> Observed:
    now = now_ns()
    return Observed("web", workspace, group, fields, Stamp(now, now, CLOCK), wall_ms(), producer="test")


def name_of(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        time.sleep(0.02)


# ── many at once ─────────────────────────────────────────────────────────────────────────────────


def test_several_processes_that_start_at_once_make_one_database(url: str) -> None:
    code = "import sys; from pipeline import catalog; print(catalog.open_url(sys.argv[1]).identity())"
    command = [sys.executable, "-c", code, url]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate(timeout=90) for child in children]
    assert [child.returncode for child in children] == [0] * 4, [complaint for _, complaint in said]
    assert len({identity for identity, _ in said}) == 1


def test_writers_take_turns_so_that_nothing_is_lost_and_nothing_is_made_twice(catalog: Catalog, url: str) -> None:
    """Each thread makes the same workspaces, and reports to the same session: as many revisions as events."""
    others = [catalogs.Catalog(url) for _ in range(4)]
    errors: list[BaseException] = []

    def write(mine: Catalog) -> None:
        try:
            for n in range(10):
                mine.record([event(f"w{n}", name="x"), event("w0", "session:s1", state="working")])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(mine,)) for mine in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine in others:
        mine.close()
    assert errors == []
    assert [one.id for one in catalog.workspaces()] == [f"w{n}" for n in range(10)]
    with catalog.database.read() as tx:
        (row,) = tx.execute(tables.session.select()).mappings()
    [look] = catalog.record([event("w0", "session:s1", state="idle")])
    assert look is not None
    assert look.revision == row["revision"] + 1
    assert row["revision"] > 10


def test_a_census_sees_one_state_whatever_is_written_meanwhile(catalog: Catalog) -> None:
    with catalog.database.read() as tx:
        before = tx.execute(tables.workspace.select()).all()
        catalog.record([event("w1")])
        assert tx.execute(tables.workspace.select()).all() == before == []
    assert [one.id for one in catalog.workspaces()] == ["w1"]


def test_a_writer_that_hangs_is_named_and_does_not_stop_readers(
    catalog: Catalog, server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.3)
    other = catalogs.Catalog(url)
    with psycopg.connect(url) as hanging:
        hanging.execute(f"SELECT pg_advisory_xact_lock({database.WRITERS})".encode())
        with pytest.raises(CatalogUnavailable, match="is locked by another process for too long"):
            other.record([event("w1")])
        assert other.projects()[0].id == "web"
    other.record([event("w1")])
    other.close()


# ── noticing ─────────────────────────────────────────────────────────────────────────────────────


def test_a_write_of_another_process_is_noticed_by_its_notification(
    catalog: Catalog, watching: ChangeWatch, url: str
) -> None:
    assert watching.check() == "same"
    assert watching.quiet()
    other = catalogs.Catalog(url)
    other.record([event("w1")])
    until(lambda: not watching.quiet(), 2)
    assert watching.check() == "changed"
    assert watching.quiet()
    other.close()


def test_a_notification_is_only_a_hint_the_rows_decide(watching: ChangeWatch, server: Server, url: str) -> None:
    server.sql(f"SELECT pg_notify('{database.CHANNEL}', '')", name_of(url))
    until(lambda: not watching.quiet(), 2)
    assert watching.check() == "same"


def test_a_write_that_nobody_notified_of_is_found_all_the_same(
    catalog: Catalog, watching: ChangeWatch, server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sql("UPDATE project SET created_ms = 2", name_of(url))
    assert watching.quiet(), "nobody said so"
    monkeypatch.setattr(watch, "TRUST_S", 0.0)
    assert not watching.quiet()
    assert watching.check() == "changed"


def test_one_that_can_no_longer_listen_asks_each_time_and_listens_again(
    catalog: Catalog, watching: ChangeWatch, server: Server, url: str
) -> None:
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'treewire watch'")
    until(lambda: not watching.quiet())
    until(lambda: watching.check() == "same" and watching.quiet())
    catalog.record([event("w1")])
    until(lambda: not watching.quiet(), 2)


# ── a server that goes away ──────────────────────────────────────────────────────────────────────


def test_a_server_that_crashes_is_said_to_be_away_and_used_again_once_it_is_back(
    catalog: Catalog, watching: ChangeWatch, server: Server
) -> None:
    catalog.record([event("w1", name="before")])
    server.stop(signal.SIGQUIT)
    try:
        with pytest.raises(CatalogUnavailable, match=r"does not answer|went away"):
            catalog.record([event("w1", name="lost")])
        assert watching.check() == "broken"
        assert "start the server" in watching.why
    finally:
        server.start()
    [look] = catalog.record([event("w1", name="after")])
    assert look is not None
    assert look.revision == 2
    until(lambda: watching.check() == "changed")
    assert catalog.workspaces()[0].name == "after"


def test_a_gateway_without_events_sees_that_the_server_is_away_and_that_it_is_back(
    server: Server, url: str, tmp_path: Path
) -> None:
    recorder = Recorder(Settings.load(tmp_path, {"database.url": url}, environ={}), structlog.get_logger())
    try:
        recorder.check()
        assert recorder.state == "ok"
        server.stop(signal.SIGQUIT)
        try:
            recorder.check()
            assert recorder.state == "degraded"
        finally:
            server.start()
        recorder.check()
        assert recorder.state == "ok"
    finally:
        recorder.close()


def test_an_event_that_the_server_could_not_take_is_not_what_the_gateway_waits_for(
    catalog: Catalog, server: Server, url: str, tmp_path: Path
) -> None:
    """It is back when the server is, whether anybody reports anything or not."""
    born = {"project": "web", "workspace": "w1", "group": "life", "fields": {"name": "w1"}, "age_ms": 0, "source": "me"}
    recorder = Recorder(Settings.load(tmp_path, {"database.url": url}, environ={}), structlog.get_logger())
    try:
        recorder.check()
        server.stop(signal.SIGQUIT)
        try:
            with pytest.raises(CatalogUnavailable):
                asyncio.run(recorder.take([born]))
        finally:
            server.start()
        recorder.check()
        assert recorder.state == "ok"
    finally:
        recorder.close()


def test_a_transaction_that_is_cut_off_leaves_nothing_behind(catalog: Catalog, server: Server, url: str) -> None:
    def write() -> None:
        with catalog.database.write() as tx:
            tx.execute(tables.project.update().values(name="half"))
            mine = tx.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            server.sql(f"SELECT pg_terminate_backend({mine})")
            tx.execute(tables.project.update().values(name="more"))

    with pytest.raises(CatalogUnavailable, match="went away"):
        write()
    assert catalog.projects()[0].name == "web"


def test_another_database_under_the_same_name_is_noticed_before_anything_is_written(
    catalog: Catalog, watching: ChangeWatch, server: Server, url: str
) -> None:
    before, name = catalog.identity(), name_of(url)
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.sql(f"CREATE DATABASE {name} TEMPLATE template0")
    catalogs.open_url(url).close()
    with pytest.raises(CatalogUnavailable, match="was replaced by another one"):
        catalog.add_project("/srv/other", 1)
    assert catalog.projects() == []
    assert catalog.identity() != before
    assert watching.check() in ("replaced", "broken")
    catalog.add_project("/srv/other", 1)
    assert catalog.projects()[0].id == "other"


# ── settings that cannot be used ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://u:hush@/x?host=/nonexistent", "does not answer: start the server"),
        ("postgresql:///x?host=/nonexistent&password=hush", "does not answer: start the server"),
        ("mysql://u:hush@h/x", "names mysql, which is not supported"),
        ("postgresql+asyncpg://u:hush@h/x", "is not supported: write"),
        ("postgresql", "is not a URL"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_what_to_do_and_without_its_password(
    url: str, sentence: str
) -> None:
    with pytest.raises(CatalogUnavailable, match=sentence) as caught:
        catalogs.open_url(url)
    assert "hush" not in str(caught.value)


def test_a_database_that_is_not_there_or_not_ours_is_said_in_a_sentence(server: Server, url: str) -> None:
    with pytest.raises(CatalogUnavailable, match="does not exist"):
        catalogs.open_url(server.url("nowhere"))
    with pytest.raises(CatalogUnavailable, match="has no treewire tables"):
        catalogs.Catalog(url).projects()
    catalogs.open_url(url).close()
    server.sql("UPDATE alembic_version SET version_num = '9999'", name_of(url))
    with pytest.raises(CatalogUnavailable, match="written by a newer treewire: upgrade treewire"):
        catalogs.open_url(url)


def test_without_the_driver_it_is_said_how_to_get_it(url: str) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pipeline import catalog\n"
        "try: catalog.open_url(sys.argv[1])\n"
        "except catalog.CatalogUnavailable as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60)
    assert "pip install 'treewire[postgresql]'" in done.stdout, done.stderr


# ── processes ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def settings(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Censuses on the cadence alone would come too late for the tests."""
    monkeypatch.setenv("TREEWIRE_DATABASE__URL", url)
    monkeypatch.setenv("TREEWIRE_RECONCILER__POLL_MS", "50")
    monkeypatch.setenv("TREEWIRE_RECONCILER__MIN_GAP_MS", "100")
    monkeypatch.setenv("TREEWIRE_RECONCILER__EVERY_S", "3600")
    with deployment.home() as settings:
        yield settings


async def test_what_is_written_reaches_followers_by_a_notification_and_across_a_restart_of_the_server(
    settings: Settings, catalog: Catalog, server: Server
) -> None:
    async def comes(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.02)

    def shown() -> set[str]:
        replica = follower.replicas.get("web")
        return set() if replica is None or replica.ledger is None else set(replica.ledger.state())

    def state() -> str:
        beat = read_beat(settings.run_dir / "reconciler.beat")
        return "" if beat is None else beat.state

    with deployment.process("aggregator", settings), deployment.process("reconciler", settings):
        follower = Follower(settings.run_dir)
        try:
            catalog.record([event("w1")])
            await comes(lambda: "w1" in shown(), "the first census is not there")
            catalog.record([event("w2")])
            await comes(lambda: "w2" in shown(), "what was notified is not shown", watch.TRUST_S)
            server.stop(signal.SIGQUIT)
            try:
                await comes(lambda: state() == "degraded", "a server that is away is not shown")
                assert shown() == {"w1", "w2"}, "what was known stays"
            finally:
                server.start()
            catalog.record([event("w3")])
            await comes(lambda: "w3" in shown(), "what was written after the restart is not shown")
            await comes(lambda: state() == "running", "that the server is back is not shown")
        finally:
            follower.close()
