"""Another tool's database becomes facts, and facts become events. Real SQLite, a real catalog; no bus."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import catalog as catalogs
from pipeline.bridges import factory_factory, mapping
from pipeline.bridges.event import MAX_TEXT
from pipeline.bridges.factory_factory import ratchet_state
from pipeline.bridges.foreign import flag, ident, number, path, text, when
from pipeline.bridges.mapping import MappingError, parse
from pipeline.catalog import Observed, Worktree
from pipeline.catalog.ids import worktree_id
from pipeline.cli import main
from pipeline.domain.model import Stamp
from pipeline.domain.status import derive
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.sources import databases
from pipeline.sources.databases import Unreadable
from pipeline.sources.following import Following
from pipeline.sources.ladder import Ladder
from tests.foreign import ISO, MIGRATION, MS, FactoryFactory

EXAMPLE = Path(__file__).parents[2] / "config/examples/mapping.toml"
CLAUDE = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def tool(tmp_path):
    return FactoryFactory(tmp_path / "data.db")


@pytest.fixture
def catalog(tmp_path):
    """It follows /srv/web, and its worktree /srv/wt/one."""
    (tmp_path / "home").mkdir(mode=0o700)
    catalog = catalogs.open_url(f"sqlite:///{tmp_path}/home/treewire.db")
    catalog.add_project("/srv/web", 1)
    discover(catalog, "/srv/web", "/srv/wt/one")
    yield catalog
    catalog.close()


def discover(catalog, *paths):
    found = [Worktree(path, "main", f"{path}/.git", "/srv/web/.git", n, "main") for n, path in enumerate(paths)]
    now = now_ns()
    catalog.upsert_worktrees("web", found, Stamp(now, now, CLOCK), 1, ())


def follow(tool, name="factory-factory"):
    return Following(databases.understood(name, databases.of_factory_factory(tool.path)))


def facts(tool, workspace="w1"):
    database = databases.understood("factory-factory", databases.of_factory_factory(tool.path))
    return {group: fact.fields for group, fact in picture(database).homes[workspace].facts.items()}


def picture(database):
    return database.native.picture(databases.read(database).rows)


ONE = worktree_id("/srv/wt/one")


# ── values ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "said", [ISO, "2026-11-23T18:19:57.401Z", "2026-11-23 18:19:57.401", "2026-11-23T20:19:57.401+02:00", MS, str(MS)]
)
def test_a_time_is_read_however_the_tool_writes_it(said):
    assert when(said) == MS


@pytest.mark.parametrize("said", ["", "yesterday", -1, 1e300, None, b"\x00", "9" * 400, "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time_is_none(said):
    assert when(said) is None


def test_text_is_cut_and_holds_nothing_that_a_terminal_would_obey():
    assert text("a\x1b[31mb\u202e") == "a\ufffd[31mb\ufffd"
    assert text("x" * 10**6) == "x" * MAX_TEXT
    assert text(b"\xff") == "\ufffd"
    assert text("  ") is None
    assert text(None) is None


def test_numbers_flags_and_paths_that_make_no_sense_are_none():
    assert (number("12"), number(-1), number(2**60), number("1e5"), number(True)) == (12, None, None, None, None)
    assert (flag(1), flag("false"), flag("maybe"), flag(None)) == (True, False, None, None)
    assert (path("/a/../b"), path("b"), path("/a\0b"), path(7)) == ("/b", None, None, None)


def test_an_id_of_the_tool_cannot_be_taken_for_one_of_another_tool():
    assert ident("factory-factory", "c1") == "factory-factory:c1"
    assert ident("factory", "factory:c1") != ident("factory-factory", "c1")
    assert ident("t", "not an id") != ident("t", "not-an-id")
    assert len(ident("t", "x" * 500)) < 80


# ── factory-factory ──────────────────────────────────────────────────────────────────────────────


def test_every_column_that_the_bridge_names_is_read(tool):
    tool.workspace("w1", "/srv/wt/one", branchName="dev/1", status="READY")
    tool.set(
        "WorkspacePR", "w1", number=12, url="https://h/12", state="APPROVED", ciStatus="SUCCESS", hasMergeConflict=1,
        syncedAt=MS,
    )  # fmt: skip
    tool.set("WorkspaceRatchet", "w1", enabled=1, dispatchStalled=1)
    tool.set("WorkspaceRunScript", "w1", status="RUNNING", port=3000, startedAt="2026-11-23 18:19:57")
    tool.set("WorkspaceAutoIteration", "w1", mode="AUTO_ITERATION", status="RUNNING")
    tool.session("s1", "w1", status="PAUSED", provider="CODEX")
    tool.terminal("t1", "w1", status="RUNNING")
    assert facts(tool) == {
        "life": {"name": "Task w1", "phase": "ready", "branch": "dev/1", "base": "main"},
        "pr": {
            "number": 12,
            "url": "https://h/12",
            "state": "open",
            "review": "approved",
            "mergeable": "conflicting",
        },
        "ci": {"state": "success", "pr": 12},
        "ratchet": {"enabled": True, "state": "merge_conflict", "stalled": True, "iterating": True},
        "run": {"state": "running", "port": 3000},
        "terminal": {"active": True},
        "session:s1": {"provider": "codex", "name": "Chat 1", "model": "opus", "state": "idle"},
    }


@pytest.mark.parametrize(("theirs", "ours"), factory_factory.PHASES.items())
def test_every_status_of_a_workspace_has_its_phase(tool, theirs, ours):
    tool.workspace("w1", status=theirs)
    assert facts(tool)["life"]["phase"] == ours


@pytest.mark.parametrize(
    ("state", "ours", "review"),
    [
        ("DRAFT", "draft", None),
        ("OPEN", "open", None),
        ("CHANGES_REQUESTED", "open", "changes_requested"),
        ("APPROVED", "open", "approved"),
        ("MERGED", "merged", None),
        ("CLOSED", "closed", None),
    ],
)
def test_every_state_of_a_pull_request_is_ours(tool, state, ours, review):
    tool.workspace("w1")
    tool.set("WorkspacePR", "w1", number=1, state=state)
    assert (facts(tool)["pr"]["state"], facts(tool)["pr"]["review"]) == (ours, review)


def test_a_workspace_without_a_pull_request_says_nothing_of_one_nor_of_checks(tool):
    tool.workspace("w1")
    assert not {"pr", "ci"} & facts(tool).keys()


@pytest.mark.parametrize(("theirs", "ours"), {**factory_factory.SESSIONS, "RUNNING": "unknown"}.items())
def test_a_session_that_runs_is_not_said_to_work(tool, theirs, ours):
    tool.workspace("w1")
    tool.session("s1", "w1", status=theirs)
    session = facts(tool)["session:s1"]
    assert (session["state"], session["model"], session["name"]) == (ours, "opus", "Chat 1")
    assert ours not in ("working", "starting", "waiting")


def test_a_session_has_the_id_that_the_agent_itself_goes_by(tool):
    tool.workspace("w1")
    tool.session("s1", "w1", providerSessionId=CLAUDE)
    assert f"session:claude-{CLAUDE}" in facts(tool)


@pytest.mark.parametrize(
    ("enabled", "pr", "checks", "state"),
    [
        (True, {}, None, "idle"),
        (True, {"state": "open", "mergeable": "conflicting"}, "failure", "merge_conflict"),
        (True, {"state": "open"}, "pending", "ci_running"),
        (True, {"state": "open", "review": "changes_requested"}, "failure", "ci_failed"),
        (True, {"state": "open", "review": "changes_requested"}, "success", "review_pending"),
        (True, {"state": "open"}, "success", "ready"),
        (True, {"state": "open"}, "unknown", "idle"),
        (False, {"state": "open"}, "failure", "idle"),
        (False, {"state": "merged"}, "failure", "merged"),
        (True, {"state": "closed"}, "failure", "idle"),
    ],
)
def test_the_ratchet_is_about_the_most_pressing_of_conflict_checks_and_review(enabled, pr, checks, state):
    assert ratchet_state(enabled, pr, checks) == state


def test_a_word_that_is_not_known_is_no_value_and_is_named(tool):
    tool.workspace("w1", status="HIBERNATING")
    found = picture(databases.understood("f", databases.of_factory_factory(tool.path)))
    assert found.homes["w1"].facts["life"].fields["phase"] is None
    assert found.problems == ["Workspace w1: status 'HIBERNATING' is not known"]


def test_everything_of_an_archived_project_is_archived(tool):
    tool.project("p2", "/srv/old", isArchived=1)
    tool.workspace("w1", projectId="p2")
    assert facts(tool)["life"]["phase"] == "archived"


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_what_a_setup_printed_is_never_read_and_a_huge_value_is_cut(tool):
    tool.workspace("w1", initOutput="secret " * 10**5, name="n" * 10**6, branchName="b\x00\x1b]0;x\x07")
    tables = databases.read(follow(tool).database)
    assert "initOutput" not in tables.rows["Workspace"][0]
    assert len(tables.rows["Workspace"][0]["name"]) == databases.MAX_CELL
    assert len(facts(tool)["life"]["name"]) == MAX_TEXT
    assert "\x1b" not in facts(tool)["life"]["branch"]


def test_more_rows_than_are_read_conclude_nothing_about_those_that_are_not(tool, catalog, monkeypatch):
    for n in range(3):
        tool.workspace(f"w{n}")
    following = follow(tool)
    following.look(catalog)
    monkeypatch.setattr(databases, "MAX_ROWS", 1)
    for _ in range(3):
        seen = following.look(catalog)
    assert "Workspace has more rows than are read" in seen.notes
    assert len([one for one in catalog.workspaces() if one.id.startswith("factory-factory:")]) == 3


def test_the_newest_finished_migration_is_the_schema(tool):
    assert databases.read(follow(tool).database).schema == MIGRATION


def test_a_schema_that_drifted_is_an_error_that_says_what_is_missing(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    following.look(catalog)
    tool.run("ALTER TABLE Workspace RENAME COLUMN worktreePath TO checkout")
    with pytest.raises(Unreadable, match=rf"has no column worktreePath \(its schema is {MIGRATION}\)"):
        following.look(catalog)
    assert catalog.workspace(ONE).name == "Task w1", "the last good state stands"


def test_a_column_that_the_tool_may_have_is_not_missed(tool):
    tool.workspace("w1")
    tool.session("s1", "w1", providerSessionId=CLAUDE)
    tool.run("ALTER TABLE AgentSession DROP COLUMN providerSessionId")
    assert "session:s1" in facts(tool)


def test_a_writer_is_never_held_up_by_readings(tool, catalog):
    """The writer gives up after half a second: a reading that kept its lock would show as an error."""
    for n in range(20):
        tool.workspace(f"w{n}")
    errors: list[str] = []
    refused: list[str] = []
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        db = sqlite3.connect(tool.path, timeout=0.5, isolation_level=None)
        while not stop.is_set():
            try:
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE WorkspaceRatchet SET dispatchRetryCount = dispatchRetryCount + 1")
                db.execute("COMMIT")
                written += 1
            except sqlite3.Error as error:
                errors.append(str(error))
                if db.in_transaction:
                    db.execute("ROLLBACK")
            time.sleep(0.001)
        db.close()

    thread = threading.Thread(target=write)
    thread.start()
    following, read = follow(tool), 0
    try:
        deadline = time.monotonic() + 30
        while (read < 50 or written < 50) and time.monotonic() < deadline:
            try:
                following.look(catalog)
                read += 1
            except Unreadable as error:
                refused.append(str(error))
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert all("locked" in why for why in refused)
    assert (read >= 50, written >= 50) == (True, True)


def test_no_lock_is_left_behind_by_a_reading(tool, catalog):
    follow(tool).look(catalog)
    writer = sqlite3.connect(tool.path, timeout=0, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("ROLLBACK")
    writer.close()


def test_a_writer_that_holds_the_database_is_waited_for_a_moment_and_then_named(tool, monkeypatch):
    monkeypatch.setattr(databases, "BUSY_MS", 50)
    writer = sqlite3.connect(tool.path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unreadable, match="is locked by a writer for too long"):
        databases.read(follow(tool).database)
    writer.close()
    databases.read(follow(tool).database)


def test_a_database_in_wal_mode_is_read_and_its_log_is_seen_to_grow(tool, catalog):
    db = sqlite3.connect(tool.path)
    db.execute("PRAGMA journal_mode=WAL")
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    following.look(catalog)
    wait_until_quiet(following, catalog)
    with db:
        db.execute("UPDATE Workspace SET name = 'Other'")
    assert not following.quiet()
    following.look(catalog)
    assert catalog.workspace(ONE).name == "Other"
    db.close()


def test_a_file_that_is_gone_or_no_database_is_said_in_a_sentence(tmp_path):
    for name, content, sentence in (
        ("gone.db", None, "is not there"),
        ("text.db", "text " * 500, "no SQLite database"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(Unreadable, match=sentence):
            databases.read(databases.understood("f", databases.of_factory_factory(tmp_path / name)))
    assert not (tmp_path / "gone.db").exists(), "reading makes nothing"


def test_a_reading_that_takes_too_long_is_given_up(tool, monkeypatch):
    tool.run(
        "CREATE TABLE n AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 3000) SELECT x FROM c"
    )
    tool.run("DROP TABLE TerminalSession")
    tool.run(
        "CREATE VIEW TerminalSession AS SELECT count(*) AS id, '' AS workspaceId, '' AS status, '' AS updatedAt "
        "FROM n, n AS m, n AS o"
    )
    monkeypatch.setattr(databases, "DEADLINE_S", 0.1)
    began = time.monotonic()
    with pytest.raises(Unreadable, match="could not be read within"):
        databases.read(follow(tool).database)
    assert time.monotonic() - began < 20


# ── following ────────────────────────────────────────────────────────────────────────────────────


def wait_until_quiet(following, catalog):
    deadline = time.monotonic() + 10
    while not following.quiet():
        following.look(catalog)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_workspace_whose_worktree_is_followed_is_that_workspace(tool, catalog):
    tool.workspace("w1", "/srv/wt/one", branchName="stale/branch", name="Add login")
    follow(tool).look(catalog)
    one = catalog.workspace(ONE)
    assert (one.name, one.branch, one.phase) == ("Add login", "main", "ready"), "git knows the branch"
    assert {one.id for one in catalog.workspaces()} == {worktree_id("/srv/web"), ONE}


def test_any_other_becomes_a_workspace_of_the_project_with_its_repository(tool, catalog):
    tool.workspace("w1", "/srv/wt/two", name="Elsewhere", branchName="dev/2")
    tool.project("p2", "/srv/unknown")
    tool.workspace("w2", "/srv/wt/three", projectId="p2")
    seen = follow(tool).look(catalog)
    made = catalog.workspace("factory-factory:w1")
    assert (made.project, made.name, made.branch, made.path) == ("web", "Elsewhere", "dev/2", "/srv/wt/two")
    assert seen.skipped == 1
    assert catalog.workspace("factory-factory:w2") is None


def test_a_workspace_made_before_its_worktree_was_listed_is_the_one_that_discovery_finds(tool, catalog):
    tool.workspace("w1", status="PROVISIONING")
    following = follow(tool)
    following.look(catalog)
    assert catalog.workspace("factory-factory:w1").phase == "provisioning"
    tool.set("Workspace", "w1", worktreePath="/srv/wt/two", status="READY")
    following.look(catalog)
    discover(catalog, "/srv/web", "/srv/wt/one", "/srv/wt/two")
    at_two = [one for one in catalog.workspaces() if one.path == "/srv/wt/two"]
    assert [(one.id, one.phase) for one in at_two] == [("factory-factory:w1", "ready")]


def test_a_worktree_that_discovery_found_first_takes_the_place_of_the_one_made_without_it(tool, catalog):
    tool.workspace("w1", status="PROVISIONING")
    following = follow(tool)
    following.look(catalog)
    discover(catalog, "/srv/web", "/srv/wt/one", "/srv/wt/two")
    tool.set("Workspace", "w1", worktreePath="/srv/wt/two", status="READY")
    following.look(catalog)
    following.look(catalog)
    live = [one.id for one in catalog.workspaces() if one.name == "Task w1"]
    assert live == [worktree_id("/srv/wt/two")]


def test_only_what_changed_is_told_again(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    assert len(following.look(catalog).looks) > 1
    assert following.look(catalog).looks == []


def test_a_side_table_that_changed_is_told_although_the_workspace_says_that_it_did_not(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    following.look(catalog)
    tool.set("WorkspaceRatchet", "w1", dispatchStalled=1)
    looks = following.look(catalog).looks
    assert [(look.group, look.value.stalled) for look in looks] == [("ratchet", True)]


def test_the_board_shows_what_the_data_says(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    tool.set("WorkspacePR", "w1", number=12, state="OPEN", ciStatus="FAILURE", syncedAt=ISO)
    tool.set("WorkspaceRatchet", "w1", enabled=1)
    looks = follow(tool).look(catalog).looks
    groups = {look.group: look.value for look in looks}
    assert derive(groups).code == "fixing_ci_failures"
    ci = next(look for look in looks if look.group == "ci")
    pr = next(look for look in looks if look.group == "pr")
    assert ci.key == pr.key


def test_an_archived_workspace_is_archived_and_one_never_seen_is_not_made_for_it(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    tool.workspace("w2", status="ARCHIVED")
    following = follow(tool)
    following.look(catalog)
    tool.set("Workspace", "w1", status="ARCHIVED")
    looks = following.look(catalog).looks
    assert [look.value.phase for look in looks] == ["archived"]
    assert catalog.workspace(ONE).phase == "archived"
    assert catalog.workspace("factory-factory:w2") is None


def test_what_its_operator_archived_stays_archived_whatever_the_tool_goes_on_saying(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    following.look(catalog)
    now = now_ns()
    catalog.archive_workspace(ONE, Stamp(now, now, CLOCK), 1)
    tool.set("Workspace", "w1", name="Renamed")
    following.look(catalog)
    follow(tool).look(catalog)
    assert catalog.workspace(ONE).phase == "archived"


def test_what_the_tool_archived_comes_back_when_the_tool_says_so(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    following = follow(tool)
    for status in ("READY", "ARCHIVED", "READY"):
        tool.set("Workspace", "w1", status=status)
        following.look(catalog)
    assert catalog.workspace(ONE).phase == "ready"
    assert catalog.workspace(ONE).incarnation == 2


def test_a_workspace_that_the_tool_lost_is_archived_after_two_readings_unless_git_still_lists_it(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    tool.workspace("w2")
    following = follow(tool)
    following.look(catalog)
    tool.run("DELETE FROM Workspace")
    following.look(catalog)
    assert following.unsettled()
    assert catalog.workspace("factory-factory:w2").phase == "ready", "a tool may rewrite its tables in two steps"
    following.look(catalog)
    assert catalog.workspace("factory-factory:w2").phase == "archived"
    assert catalog.workspace(ONE).phase == "ready"


def test_a_pull_request_that_the_tool_no_longer_has_is_cleared(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    tool.set("WorkspacePR", "w1", number=12, state="OPEN", ciStatus="FAILURE", syncedAt=ISO)
    following = follow(tool)
    following.look(catalog)
    tool.set("WorkspacePR", "w1", number=None, state="NONE", ciStatus="UNKNOWN", syncedAt=None)
    values = {look.group: look.value for look in following.look(catalog).looks}
    assert (values["pr"].number, values["pr"].state, values["ci"].state) == (None, None, None)


def test_what_the_tool_saw_long_ago_does_not_undo_what_somebody_saw_since(tool, catalog):
    now = now_ns()
    fields = {"number": 12, "state": "merged", "head": "a" * 40}
    catalog.record([Observed("web", ONE, "pr", fields, Stamp(now, now, CLOCK), 1, producer="github")])
    tool.workspace("w1", "/srv/wt/one")
    tool.set(
        "WorkspacePR", "w1", number=12, state="OPEN", ciStatus="PENDING", syncedAt=int(time.time() * 1000) - 60_000
    )
    looks = follow(tool).look(catalog).looks
    assert next(look for look in looks if look.group == "pr").revision is None
    current = catalog.record([Observed("web", ONE, "pr", {}, Stamp(now + 1, now + 1, CLOCK), 1)])[0]
    assert current.value.state == "merged"


def test_sessions_that_nobody_else_can_see_go_to_the_catalog_and_end_with_their_row(tool, catalog):
    tool.workspace("w1", "/srv/wt/one")
    tool.session("s1", "w1")
    tool.session("s2", "w1", providerSessionId=CLAUDE)
    following = follow(tool)
    seen = following.look(catalog)
    assert [look.group for look in seen.looks if look.group.startswith("session:")] == ["session:factory-factory:s1"]
    (sighting,) = seen.sightings
    assert (sighting.session, sighting.cwd, sighting.fields.state) == (f"claude-{CLAUDE}", "/srv/wt/one", "idle")
    assert following.look(catalog).sightings == [], "only what changed"
    tool.run("DELETE FROM AgentSession")
    seen = following.look(catalog)
    assert [(look.group, look.value.state) for look in seen.looks] == [("session:factory-factory:s1", "exited")]
    assert set(seen.lost) == {f"claude-{CLAUDE}"}


def test_an_agent_that_died_is_not_brought_back_by_a_row_from_before_its_death(tool, catalog):
    """Only the row's own last change says when the tool knew."""
    tool.workspace("w1", "/srv/wt/one")
    tool.session("s1", "w1", status="RUNNING", providerSessionId=CLAUDE, updatedAt=int(time.time() * 1000) - 5000)
    ladder, following = Ladder(), follow(tool)
    for sighting in following.look(catalog).sightings:
        ladder.saw("foreign", sighting)
    now = now_ns()
    assert ladder.ended("process", f"claude-{CLAUDE}", Stamp(now, now, CLOCK), 1, crashed=False)
    tool.set("AgentSession", "s1", name="Renamed")
    for sighting in following.look(catalog).sightings:
        ladder.saw("foreign", sighting)
    assert ladder.best(f"claude-{CLAUDE}").fields.state == "exited"


def test_hostile_values_neither_break_the_reading_nor_get_through(tool, catalog):
    tool.workspace("w1", "/srv/wt/one", name="\x00\x1b[2J" + "\u202e" * 1000)
    tool.workspace("w2", "relative/path", name="x")
    tool.workspace("../../w3", "/srv/" + "d" * 5000)
    tool.set("WorkspacePR", "w1", number=2**62, state="OPEN", url="javascript:alert(1)")
    tool.set("WorkspacePR", "w2", number=7, state="OPEN", url="javascript:alert(1)")
    tool.set("WorkspaceRunScript", "w1", status="RUNNING", port=10**9)
    tool.session("s/../1", "w1", model="m" * 10**5, status="x" * 10**5)
    looks = follow(tool).look(catalog).looks
    assert not any("\x1b" in repr(look.value) or "javascript" in repr(look.value) for look in looks)
    assert next(look.value for look in looks if look.group == "run").port is None
    assert not any(look.group == "pr" and look.workspace == ONE for look in looks)
    assert all(len(look.workspace) <= 80 and "/" not in look.workspace for look in looks)


# ── mappings ─────────────────────────────────────────────────────────────────────────────────────


def tracker(tmp_path):
    database = tmp_path / "tracker.db"
    db = sqlite3.connect(database)
    db.executescript(
        """
        CREATE TABLE repository (id INTEGER PRIMARY KEY, checkout TEXT);
        CREATE TABLE task (id INTEGER PRIMARY KEY, repository_id INTEGER, worktree TEXT, changed_at INTEGER, title TEXT,
          branch TEXT, state TEXT, pull_request INTEGER, pull_request_url TEXT, pull_request_state TEXT, checks TEXT,
          github_synced_at TEXT, server TEXT, server_port INTEGER);
        CREATE TABLE agent (id INTEGER PRIMARY KEY, task_id INTEGER, changed_at TEXT, title TEXT, provider TEXT,
          model TEXT, state TEXT, asks_for TEXT);
        INSERT INTO repository VALUES (1, '/srv/web'), (2, NULL);
        INSERT INTO task VALUES (1, 1, '/srv/wt/one', 1795457997401, 'First', 'b', 'cloning', 12, 'https://h/12',
          'OPEN', 'red', '2026-11-23 18:19:57', 'up', 8080);
        INSERT INTO task VALUES (2, 1, NULL, NULL, 'Second', NULL, 'odd', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        INSERT INTO agent VALUES (5, 2, '2026-11-23T18:19:57Z', 'Plan', 'pi', 'm', 'asking', 'choice');
        """
    )
    db.close()
    return EXAMPLE.read_text().replace("/srv/tracker/tracker.db", str(database))


def test_the_example_mapping_reads_a_database_of_nobodys(tmp_path, catalog):
    following = Following(databases.understood("tracker", tracker(tmp_path)))
    seen = following.look(catalog)
    one = {look.group: look.value for look in seen.looks if look.workspace == ONE}
    two = {look.group: look.value for look in seen.looks if look.workspace == "tracker:2"}
    assert (one["life"].phase, one["life"].name) == ("provisioning", "First")
    assert (one["pr"].number, one["pr"].state, one["ci"].state) == (12, "open", "failure")
    assert (one["run"].state, one["run"].port) == ("running", 8080)
    assert two["life"].phase == "ready", "for a word that is not translated there is `otherwise`"
    assert "pr" not in two, "a group of which every field is empty is none"
    assert (two["session:tracker:5"].state, two["session:tracker:5"].waiting_for) == ("waiting", "question")


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("[workspace]", "[workspaces]", r"line \d+: workspaces is not known; there are database, project"),
        ('table = "repository"', "", r"line 7: project.table is missing: it names a table"),
        (
            '"ready", broken',
            '"reddy", broken',
            r"line 23: workspace.phase.values.open cannot be 'reddy'; it is one of new",
        ),
        ('branch = "branch"', 'brunch = "branch"', r"line 19: workspace.brunch is no field here; there are .*branch"),
        ('model = "model"', "model = 3", r"line 44: session.model has to be a column"),
        ("sqlite:////srv", "mysql://srv", r"line 5: database has to be"),
        ('id = "id"', "id = [", r"not valid TOML: .*line \d+"),
        ('otherwise = "ready"', "otherwise = 7", r"line 24: workspace.phase.otherwise cannot be 7"),
        ('port = "server_port"', "port = { values = {} }", r"line 51: run.port has to be a column, or"),
    ],
)
def test_a_mapping_that_is_wrong_says_where_and_what_to_write(wrong, right, sentence):
    source = EXAMPLE.read_text()
    assert wrong in source
    with pytest.raises(MappingError, match=sentence):
        parse(source.replace(wrong, right, 1))


def test_a_mapping_that_does_not_fit_the_database_names_table_and_column(tmp_path):
    source = tracker(tmp_path).replace('title"', 'headline"', 1)
    with pytest.raises(Unreadable, match=r"table task has no column headline.*correct the mapping"):
        databases.read(databases.understood("tracker", source))


def test_a_section_may_name_any_table_and_column_however_it_is_written(tmp_path):
    database = tmp_path / "odd.db"
    db = sqlite3.connect(database)
    db.execute('CREATE TABLE "or""der by" ("se lect" TEXT, "{0}" TEXT)')
    db.execute("""INSERT INTO "or""der by" VALUES ('1', '/srv/web')""")
    db.commit()
    db.close()
    section = mapping.Section('or"der by', {"id": "se lect", "path": "{0}"}, {})
    native = mapping.native_of({"project": section})
    read = databases.read(databases.Configured("odd", "mapping", f"sqlite:///{database}", native))
    assert read.rows == {'or"der by': [{"se lect": "1", "{0}": "/srv/web"}]}


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def treewire(tmp_path, catalog, monkeypatch):
    for name in ("DATABASE_PATH", "BASE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TREEWIRE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, ["source", *map(str, words)])


def test_a_database_is_added_listed_checked_and_removed(treewire, tool, catalog):
    tool.workspace("w1", "/srv/wt/one", name="Add login")
    tool.workspace("w2", name="Elsewhere")
    assert "treewire source add factory-factory" in treewire("list").output
    added = treewire("add", "factory-factory", tool.path)
    assert added.exit_code == 0, added.output
    assert f"attached: {ONE} in web: Add login (ready)" in added.output
    assert str(tool.path) in treewire("list", "--json").output
    checked = treewire("check")
    assert (checked.exit_code, "new: factory-factory:w2 in web: Elsewhere" in checked.output) == (0, True)
    assert catalog.workspace("factory-factory:w2") is None, "to check tells nothing"
    follow(tool).look(catalog)
    removed = treewire("remove", "factory-factory")
    assert "archived 1 of its workspaces" in removed.output
    assert catalog.workspace("factory-factory:w2").phase == "archived"
    assert catalog.workspace(ONE).phase == "ready"


def test_what_cannot_be_followed_is_refused_with_what_to_do(treewire, tool, tmp_path):
    assert "There is no database" in treewire("add", "factory-factory").output
    assert "--mapping" in treewire("add", "other").output
    assert "is no name" in treewire("add", "Über").output
    (tmp_path / "bad.toml").write_text("database = 1")
    assert "line 1: database has to be" in treewire("add", "x", "--mapping", tmp_path / "bad.toml").output
    tool.run("DROP TABLE WorkspacePR")
    drifted = treewire("add", "factory-factory", tool.path)
    assert (drifted.exit_code, "there is no table WorkspacePR" in drifted.output) == (1, True)
    assert "There is no source 'x'" in treewire("remove", "x").output
    assert not (tmp_path / "home/sources").exists()


def test_factory_factorys_database_is_found_where_it_keeps_it(treewire, tool, tmp_path, monkeypatch):
    monkeypatch.setenv("BASE_DIR", str(tmp_path))
    assert treewire("add", "factory-factory").exit_code == 0
    assert oct((tmp_path / "home/sources/factory-factory.toml").stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("postgresql://reader:hush@db/tracker", "postgresql://reader:***@db/tracker"),
        ("postgresql://db/tracker?password=hush&port=1", "postgresql://db/tracker?password=***&port=1"),
    ],
)
def test_a_password_is_not_shown(url, where):
    source = EXAMPLE.read_text().replace("sqlite:////srv/tracker/tracker.db", url)
    assert databases.understood("t", source).where == where
