"""The catalog under faults: several processes at once, locks, and files that go away or are replaced."""

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import structlog

from gateway.ingest import Recorder
from pipeline import catalog as catalogs
from pipeline.catalog import CatalogUnavailable, ChangeWatch, Observed, Worktree, database
from pipeline.catalog import watch as watching
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Stamp
from pipeline.runtime.settings import Database as DatabaseSettings
from pipeline.runtime.settings import Settings

WEB = worktree_id("/srv/web")
TREE = Worktree("/srv/web", "main", "/srv/web/.git", "/srv/web/.git", 1, "main")


def fill(catalog):
    catalog.add_project("/srv/web", 1)
    catalog.upsert_worktrees("web", [TREE], Stamp(1, 2, "c"), 1)


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "50% off?"
    folder.mkdir()
    return folder / "treewire.db"


@pytest.fixture
def catalog(path):
    catalog = catalogs.open_url(f"sqlite:///{path}")
    fill(catalog)
    yield catalog
    catalog.close()


@pytest.fixture
def watch(catalog):
    watch = ChangeWatch(catalog)
    yield watch
    watch.close()


def test_several_processes_that_start_at_once_make_one_database(path):
    code = "import sys; from pipeline import catalog; print(catalog.open_url(sys.argv[1]).identity())"
    command = [sys.executable, "-c", code, f"sqlite:///{path}"]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 4, [complaint for _, complaint in said]
    assert len({identity for identity, _ in said}) == 1


def test_writers_in_several_threads_lose_nothing(catalog):
    def write(name):
        for n in range(20):
            stamp = Stamp(10 + n, 10 + n, "c")
            catalog.record([Observed("web", WEB, f"session:{name}", {"state": "working"}, stamp, n)])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stamp = Stamp(99, 99, "c")
    looks = catalog.record([Observed("web", WEB, f"session:{name}", {}, stamp, 1) for name in "abcd"])
    assert [look.revision for look in looks] == [21] * 4


def test_a_writer_that_holds_the_lock_is_waited_for_and_then_named(catalog, path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    catalog.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(CatalogUnavailable, match="is locked by another process"):
            catalog.add_project("/srv/b", 1)
        assert [project.id for project in catalog.projects()] == ["web"], "readers are not locked out"
    finally:
        holder.close()
    assert catalog.add_project("/srv/b", 1).new


def test_a_missing_database_is_an_error_and_is_not_made_anew_by_a_read(catalog, path):
    away = path.with_suffix(".away")
    path.rename(away)
    with pytest.raises(CatalogUnavailable, match="is missing"):
        catalog.projects()
    assert not path.exists()
    away.rename(path)
    assert [project.id for project in catalog.projects()] == ["web"]


def test_a_replaced_database_is_answered_from_and_has_another_identity(catalog, path, tmp_path):
    before = catalog.identity()
    other = catalogs.open_url(f"sqlite:///{tmp_path}/other.db")
    other.add_project("/srv/other", 1)
    other.close()
    os.replace(tmp_path / "other.db", path)
    assert [project.id for project in catalog.projects()] == ["other"]
    assert catalog.identity() != before
    with catalog.database.read() as tx:
        assert tx.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert catalog.add_project("/srv/more", 2).new


def test_a_log_that_belongs_to_the_new_file_is_left_alone(catalog, path, tmp_path):
    catalog.projects()
    other = catalogs.open_url(f"sqlite:///{tmp_path}/other.db")
    other.add_project("/srv/other", 1)
    kept = {suffix: (tmp_path / f"other.db{suffix}").read_bytes() for suffix in ("", "-wal")}
    other.close()
    for suffix, content in kept.items():
        path.with_name(f"new{suffix}").write_bytes(content)
    path.with_name(path.name + "-shm").unlink()
    for suffix in ("-wal", ""):
        os.replace(path.with_name(f"new{suffix}"), path.with_name(path.name + suffix))
    assert [project.id for project in catalog.projects()] == ["other"], "it is only in the log so far"


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "has no treewire tables"), (b"x" * 8192, "is not a database")], ids=["empty", "garbage"]
)
def test_a_database_that_is_none_is_said_to_be_none(catalog, path, content, said):
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)
    with pytest.raises(CatalogUnavailable, match=said):
        catalog.projects()


def test_a_database_that_shrank_under_us_is_an_error_and_no_empty_answer(catalog, path):
    with catalog.database.write() as tx:
        tx.exec_driver_sql("UPDATE project SET name = name")
    catalog.close()
    os.truncate(path, 4096)
    with pytest.raises(CatalogUnavailable):
        catalog.workspaces()


@pytest.mark.parametrize(
    ("url", "said"),
    [("sqlite://", "names no file"), ("sqlite:///:memory:", "names no file"), ("nonsense", "is not a URL")],
)
def test_a_setting_that_names_no_shared_database_is_said_to(url, said):
    with pytest.raises(CatalogUnavailable, match=said):
        catalogs.open_url(url)


def test_a_folder_that_cannot_be_made_is_said_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogUnavailable, match="cannot be made"):
        catalogs.open(Settings(home=tmp_path / "file" / "home"))


def test_a_home_is_made_and_a_folder_that_database_url_names_is_not(tmp_path):
    catalogs.open(Settings(home=tmp_path / "new" / "home")).close()
    assert (tmp_path / "new" / "home" / "treewire.db").exists()
    elsewhere = tmp_path / "slip" / "treewire.db"
    with pytest.raises(CatalogUnavailable, match=r"There is no folder .*/slip .*database\.url"):
        catalogs.open(Settings(home=tmp_path, database=DatabaseSettings(url=f"sqlite:///{elsewhere}")))
    assert not elsewhere.parent.exists()


# ── noticing changes ─────────────────────────────────────────────────────────────────────────────


def test_the_watch_tells_others_writes_from_quiet(catalog, watch, path):
    assert [watch.changed(), watch.changed()] == [True, False]
    other = catalogs.open_url(f"sqlite:///{path}")
    other.add_project("/srv/b", 1)
    assert [watch.check(), watch.check()] == ["changed", "same"]
    catalog.add_project("/srv/c", 1)
    assert [watch.check(), watch.check()] == ["changed", "same"]
    other.close()


def test_a_quiet_watch_needs_no_check_until_somebody_writes(catalog, watch, path):
    watch.check()
    assert not watch.quiet(), "a file this young may have been written to again within the same tick"
    for file in (path, Path(f"{path}-wal")):
        if file.exists():
            os.utime(file, ns=(0, 0))
    watch.check()
    assert watch.quiet()
    catalog.add_project("/srv/elsewhere", 1)
    assert not watch.quiet()
    assert watch.check() == "changed"


def settled(watch, path):
    """As if the last write were long ago."""
    for file in (path, Path(f"{path}-wal")):
        if file.exists():
            os.utime(file, ns=(0, 0))
    watch.check()
    assert watch.quiet()


async def test_a_watch_at_rest_is_ended_by_a_write_and_not_by_looking(catalog, watch, path, monkeypatch):
    looks = []
    settled(watch, path)
    watch.stir()
    await watch.rest(0.01)  # from here on the kernel tells
    trace = watching._trace
    monkeypatch.setattr(watching, "_trace", lambda file: (looks.append(file), trace(file))[1])
    monkeypatch.setattr(watching, "TRUST_S", 3600.0)
    resting = asyncio.create_task(watch.rest(0.01))
    await asyncio.sleep(0.1)  # ten polls, were there any
    assert not resting.done()
    assert len(looks) == 2
    catalog.add_project("/srv/elsewhere", 1)
    async with asyncio.timeout(20):
        await resting
    assert watch.check() == "changed"


async def test_a_write_between_two_rests_ends_the_second_at_once(catalog, watch, path, monkeypatch):
    settled(watch, path)
    watch.stir()
    await watch.rest(0.01)
    monkeypatch.setattr(watching, "TRUST_S", 3600.0)
    catalog.add_project("/srv/elsewhere", 1)
    settled(watch, path)  # so that no stat gives it away
    async with asyncio.timeout(20):
        await watch.rest(3600)


async def test_what_lies_beside_the_database_ends_no_rest(catalog, watch, path, monkeypatch):
    settled(watch, path)
    watch.stir()
    await watch.rest(0.01)
    monkeypatch.setattr(watching, "TRUST_S", 3600.0)
    resting = asyncio.create_task(watch.rest(3600))
    await asyncio.sleep(0.05)
    (path.parent / "token").write_text("x")
    await asyncio.sleep(0.1)
    assert not resting.done()
    watch.stir()
    async with asyncio.timeout(20):
        await resting


async def test_where_the_kernel_tells_nothing_a_rest_is_a_poll(catalog, watch, path, monkeypatch):
    monkeypatch.setattr(watching, "Touches", refused)
    settled(watch, path)
    async with asyncio.timeout(20):
        await watch.rest(0.01)


async def test_a_rest_before_something_that_is_due_soon_is_a_poll(catalog, watch, path):
    settled(watch, path)
    async with asyncio.timeout(watching.TRUST_S / 2):
        await watch.rest(0.01, 1.0)


def refused(_: Path) -> None:
    raise OSError(24, "no more watches")


def test_a_watch_of_what_cannot_be_read_is_never_quiet(catalog, watch, path):
    catalog.close()
    for file in path.parent.iterdir():
        file.unlink()
    assert watch.check() == "missing"
    assert not watch.quiet()


def test_the_watch_reports_a_missing_and_a_replaced_file_and_goes_on_with_the_new_one(catalog, watch, path):
    watch.check()
    catalog.close()
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    path.unlink()
    assert [watch.changed(), watch.last] == [False, "missing"]
    os.replace(copy, path)
    assert [watch.check(), watch.check()] == ["replaced", "same"]
    catalog.add_project("/srv/b", 1)
    assert watch.check() == "changed"


def test_the_watch_goes_on_after_a_file_was_replaced_under_open_connections(catalog, watch, path, tmp_path):
    watch.check()
    catalogs.open_url(f"sqlite:///{tmp_path}/other.db").close()
    os.replace(tmp_path / "other.db", path)
    assert watch.check() == "replaced"
    assert catalog.projects() == []
    watch.check()
    catalog.add_project("/srv/b", 1)
    assert [watch.check(), watch.check()] == ["changed", "same"]


def test_the_watch_reports_a_file_that_is_no_database_until_it_is_one_again(catalog, watch, path):
    watch.check()
    catalog.close()
    good, bad = path.with_suffix(".good"), path.with_suffix(".bad")
    shutil.copy(path, good)
    bad.write_bytes(b"x" * 8192)
    os.replace(bad, path)
    assert [watch.check(), watch.check()] == ["broken", "broken"]
    os.replace(good, path)
    assert watch.changed()


def test_the_watch_reports_a_locked_database_and_the_change_after_it(catalog, watch, path):
    catalog.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA journal_mode=DELETE")
    holder.execute("BEGIN EXCLUSIVE")
    assert watch.check() == "locked"
    holder.execute("ROLLBACK")
    holder.close()
    assert watch.check() == "changed"


def test_the_fingerprint_of_databases_without_a_counter_moves_with_every_kind_of_write(catalog, watch):
    seen = [watch.fingerprint()]

    def moved():
        seen.append(watch.fingerprint())
        return seen[-1] != seen[-2]

    assert not moved()
    catalog.add_project("/srv/b", 5)
    assert moved()
    catalog.record([Observed("web", WEB, "session:s", {"state": "idle"}, Stamp(9, 9, "c"), 1)])
    assert moved()
    catalog.archive_workspace(WEB, Stamp(10, 10, "c"), 1)
    assert moved()
    catalog.remove_project("b", Stamp(11, 11, "c"), 6)
    assert moved()


def test_what_waited_for_a_lock_while_the_file_was_replaced_is_not_written_to_the_one_that_is_gone(catalog, path):
    """It would be answered as accepted, and nobody would ever read it."""
    new = path.with_suffix(".new")
    held = sqlite3.connect(path, isolation_level=None)
    refused, done = [], threading.Event()

    def write():
        try:
            catalog.add_project("/srv/late", 2)
        except CatalogUnavailable as error:
            refused.append(str(error))
        done.set()

    writer = threading.Thread(target=write)
    try:
        held.execute("BEGIN EXCLUSIVE")
        source, copy = sqlite3.connect(path), sqlite3.connect(new)
        source.backup(copy)
        copy.close()
        source.close()
        writer.start()
        assert not done.wait(0.3), "it waits for the lock"
        os.replace(new, path)
        held.rollback()
    finally:
        held.close()
    writer.join(30)
    assert refused == [f"The database {path} was replaced by another one: try again."]
    assert [project.id for project in catalog.projects()] == ["web"]
    assert catalog.add_project("/srv/late", 3).new


def emptied(catalog):
    """The log, into the file."""
    with catalog.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def take_the_log_away(path):
    """As SQLite does by name once the last connection to a former file of this name is closed."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


ANOTHER = """
import sys
from pipeline import catalog
other = catalog.Catalog(sys.argv[1])
for name in sys.argv[2:]:
    other.add_project(name, 1)
print(*[project.id for project in other.projects()])
"""


def elsewhere(path, *add):
    """The projects, as a process of its own sees them; it may add some."""
    command = [sys.executable, "-c", ANOTHER, f"sqlite:///{path}", *add]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def here(catalog):
    return {project.id for project in catalog.projects()}


def test_whoever_held_a_log_that_was_taken_away_reads_and_writes_what_all_others_do(catalog, watch, path):
    watch.check()
    assert watch.check() == "same"
    emptied(catalog)
    take_the_log_away(path)
    elsewhere(path, "/srv/other")
    with pytest.raises(CatalogUnavailable, match="try again"):
        catalog.projects()
    assert watch.check() == "changed"
    assert here(catalog) == {"web", "other"}
    catalog.add_project("/srv/third", 1)
    assert elsewhere(path) == {"web", "other", "third"}
    watch.check()
    elsewhere(path, "/srv/fourth")
    assert watch.check() == "changed"
    assert here(catalog) == {"web", "other", "third", "fourth"}


def test_all_watches_of_a_process_get_over_a_log_that_was_taken_away(catalog, watch, path):
    another = ChangeWatch(catalog)
    try:
        for one in (watch, another):
            assert one.check() == "changed"
        emptied(catalog)
        take_the_log_away(path)
        elsewhere(path, "/srv/other")
        said = [one.check() for _ in range(3) for one in (watch, another)]
        assert said[:3] == ["locked", "changed", "changed"]
        assert set(said[3:]) == {"same"}
        assert here(catalog) == {"web", "other"}
    finally:
        another.close()


def test_to_open_the_catalog_again_in_a_process_leaves_it_its_log(catalog, path):
    """SQLite's locks are a process's, and end when it closes a descriptor of the file that SQLite knows nothing of."""
    assert here(catalog) == {"web"}
    log = catalog.database.log()
    assert log is not None
    catalogs.open_url(f"sqlite:///{path}").close()
    elsewhere(path, "/srv/other")
    assert catalog.database.log() == log, "another process took itself for the last"
    assert here(catalog) == {"web", "other"}


def test_who_reads_what_makes_no_sense_opens_everything_anew(catalog, watch, path, monkeypatch):
    settled(watch, path)
    assert watch.quiet()
    pool = catalog.engine.pool
    with pytest.raises(CatalogUnavailable, match="corrupt"), catalog.database.failures():
        raise sqlite3.DatabaseError("database disk image is malformed")
    assert here(catalog) == {"web"}
    assert catalog.engine.pool is pool, "it may be a file that is just being put there"
    monkeypatch.setattr(database, "COPIED_S", 0.0)
    with pytest.raises(CatalogUnavailable, match="try again"):
        catalog.projects()
    assert not watch.quiet()
    watch.check()
    assert here(catalog) == {"web"}
    assert catalog.engine.pool is not pool


def test_what_is_being_written_to_a_log_as_it_is_taken_away_is_refused(catalog, path):
    emptied(catalog)

    def write():
        with catalog.database.write() as tx:
            tx.execute(database.tables.meta.insert().values(name="x", value="y"))
            take_the_log_away(path)

    with pytest.raises(CatalogUnavailable, match="try again"):
        write()
    catalog.add_project("/srv/again", 1)
    assert elsewhere(path) == {"web", "again"}


def test_a_process_that_restarts_while_the_file_is_away_begins_no_empty_one(catalog, path, monkeypatch):
    """An empty catalog in its place would answer that there are no projects, and its census that all is gone."""
    settings = Settings(home=path.parent, database=DatabaseSettings(url=f"sqlite:///{path}"))
    log = structlog.get_logger()
    away = path.with_suffix(".away")
    catalog.close()
    path.rename(away)
    monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
    recorder = Recorder(settings, log)
    try:
        recorder.check()
        assert recorder.state == "degraded"
        assert not path.exists()
        away.rename(path)
        recorder.check()
        assert recorder.state == "ok"
        assert [project.id for project in recorder.open().projects()] == ["web"]
    finally:
        recorder.close()
