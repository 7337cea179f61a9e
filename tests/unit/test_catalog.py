"""The catalog against real databases: SQLite, and PostgreSQL where there is one."""

import os

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import update
from sqlalchemy.dialects import postgresql
from sqlalchemy.event import listen
from sqlalchemy.schema import CreateTable

from pipeline import catalog as catalogs
from pipeline.bridges.hooks import Wait
from pipeline.catalog import CatalogUnavailable, Observed, Standing, Worktree, migrate, tables
from pipeline.catalog.database import SCHEMA
from pipeline.catalog.ids import project_id, slug, worktree_id
from pipeline.catalog.record import ACTIVITY_NS, KEPT_SESSIONS, MOST_SESSIONS
from pipeline.domain.model import Ci, Key, Life, Pr, Session, Stamp, Terminal
from pipeline.domain.order import weigh

CLOCK = "boot-1"


def at(began, ended=None, clock=CLOCK):
    return Stamp(began, began if ended is None else ended, clock)


def tree(name, branch="main", inode=1):
    path = f"/srv/{name}"
    return Worktree(path, branch, f"{path}/.git", f"{path}/.git", inode, "main")


def event(group, when, workspace=None, *, run="", seq=None, clock=CLOCK, project="web", **fields):
    workspace = workspace or worktree_id("/srv/web")
    return Observed(project, workspace, group, fields, at(when, clock=clock), when, run, seq, "test")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").database()
    (tmp_path / "home").mkdir(mode=0o700)
    return f"sqlite:///{tmp_path}/home/treewire.db"


@pytest.fixture
def catalog(url):
    catalog = catalogs.open_url(url)
    yield catalog
    catalog.close()


@pytest.fixture
def web(catalog):
    """A catalog with one project and its main worktree, seen at 10..20."""
    catalog.add_project("/srv/web", 1)
    catalog.upsert_worktrees("web", [tree("web")], at(10, 20), 1)
    return catalog


WEB = worktree_id("/srv/web")


# ── schema ───────────────────────────────────────────────────────────────────────────────────────


def test_the_migrations_make_exactly_the_tables_that_the_code_reads(catalog):
    with catalog.database.read() as tx:
        context = MigrationContext.configure(tx, opts={"compare_type": True})
        differences = compare_metadata(context, tables.METADATA)
    assert differences == []
    assert ScriptDirectory(str(migrate.MIGRATIONS)).get_current_head() == SCHEMA


def test_every_table_can_be_made_in_postgresql():
    made = [str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in tables.METADATA.sorted_tables]
    assert all(statement.lstrip().startswith("CREATE TABLE") for statement in made)
    assert all("CREATE TABLE" in ddl for ddl in made)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_database_is_private_and_in_wal_mode(catalog):
    assert os.stat(catalog.database.path).st_mode & 0o777 == 0o600
    with catalog.database.read() as tx:
        assert tx.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert tx.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_opening_again_keeps_the_identity_and_what_is_there(web, url):
    again = catalogs.open_url(url)
    assert again.identity() == web.identity()
    assert [workspace.id for workspace in again.workspaces()] == [WEB]
    again.close()


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_worktree_id_is_stable_readable_and_tells_no_path():
    assert worktree_id("/home/ada/Fix Über") == worktree_id("/home/ada/Fix Über")
    assert worktree_id("/home/ada/Fix Über").startswith("fix-uber-")
    assert worktree_id("/home/ada/x") != worktree_id("/home/bob/x")
    assert "ada" not in worktree_id("/home/ada/x")
    assert slug("…") == "x"


def test_a_project_id_has_a_suffix_only_if_the_name_is_taken():
    assert project_id("/a/web.git", set()) == "web"
    assert project_id("/b/web", {"web"}).startswith("web-")


# ── projects and worktrees ───────────────────────────────────────────────────────────────────────


def test_adding_a_project_again_keeps_it_and_two_of_one_name_get_two_ids(catalog):
    first = catalog.add_project("/srv/web", 1)
    again = catalog.add_project("/srv/web", 2, base="dev")
    other = catalog.add_project("/opt/web", 3)
    assert (first.new, again.new, other.new) == (True, False, True)
    assert again.project.id == first.project.id == "web"
    assert again.project.base == "dev"
    assert other.project.id.startswith("web-")
    assert catalog.project("/opt/web") == other.project


def test_a_new_worktree_is_ready_a_vanished_one_archived_and_one_that_came_back_a_new_incarnation(web):
    [made] = web.upsert_worktrees("web", [tree("web"), tree("fix", "fix")], at(30, 40), 1)
    assert (made.value, made.incarnation) == (Life("fix", "ready", "fix", "main"), 1)
    web.record([event("session:s1", 45, made.workspace, state="working")])
    [gone] = web.upsert_worktrees("web", [tree("web")], at(50, 60), 2)
    assert (gone.workspace, gone.value.phase, gone.incarnation) == (made.workspace, "archived", 1)
    [back] = web.upsert_worktrees("web", [tree("web"), tree("fix", "fix")], at(70, 80), 3)
    assert (back.workspace, back.value.phase, back.incarnation) == (made.workspace, "ready", 2)
    assert made.revision < gone.revision < back.revision
    [first] = web.record([event("session:s1", 90, made.workspace, state="idle")])
    assert first.value == Session(state="idle")
    assert first.revision > 1, "a revision that the former incarnation had is not given again"


def test_a_reading_that_changes_nothing_writes_nothing(web):
    watch = catalogs.ChangeWatch(web)
    watch.check()
    assert web.upsert_worktrees("web", [tree("web")], at(30, 40), 1) == []
    assert watch.check() == "same"
    watch.close()


def test_a_switched_branch_is_a_look_and_an_older_reading_cannot_switch_it_back(web):
    [look] = web.upsert_worktrees("web", [tree("web", "topic")], at(30, 40), 1)
    assert (look.value.branch, look.revision) == ("topic", 2)
    assert web.upsert_worktrees("web", [tree("web", "main")], at(1, 5), 1) == []
    assert web.workspaces()[0].branch == "topic"


def test_a_workspace_born_while_git_was_listing_is_not_archived(web):
    web.record([event("life", 35, phase="ready")])
    assert web.upsert_worktrees("web", [], at(30, 40), 1) == []
    assert [look.value.phase for look in web.upsert_worktrees("web", [], at(50, 60), 1)] == ["archived"]


def test_a_worktree_that_cannot_be_read_now_stays(web):
    assert web.upsert_worktrees("web", [], at(30, 40), 1, unsure={"/srv/web"}) == []
    assert len(web.targets()) == 1


def test_a_worktree_made_anew_under_the_same_path_is_another_incarnation(web):
    [look] = web.upsert_worktrees("web", [tree("web", inode=2)], at(30, 40), 1)
    assert look.incarnation == 2
    assert web.targets()[0].inode == 2


def test_what_was_archived_by_hand_stays_so_until_its_worktree_was_gone(web):
    assert web.archive_workspace(WEB, at(30), 1).value.phase == "archived"
    assert web.archive_workspace(WEB, at(31), 1) is None
    assert web.upsert_worktrees("web", [tree("web")], at(40, 50), 1) == []
    assert web.upsert_worktrees("web", [], at(60, 70), 1) == []
    [back] = web.upsert_worktrees("web", [tree("web")], at(80, 90), 1)
    assert (back.value.phase, back.incarnation) == ("ready", 2)


def test_after_a_reboot_rows_of_the_former_clock_do_not_stand_in_the_way(web):
    later = at(3, 4, clock="boot-2")
    assert [look.value.branch for look in web.upsert_worktrees("web", [tree("web", "new")], later, 1)] == ["new"]
    assert [look.value.phase for look in web.upsert_worktrees("web", [], at(5, 6, clock="boot-3"), 1)] == ["archived"]
    [look] = web.record([event("life", 7, clock="boot-4", phase="ready")])
    assert (look.value.phase, look.incarnation, look.revision) == ("ready", 2, 4)


def test_a_removed_project_is_archived_and_comes_back_as_new_incarnations(web):
    assert [look.value.phase for look in web.remove_project("web", at(30), 1)] == ["archived"]
    assert (web.projects(), web.workspaces(), web.targets()) == ([], [], [])
    assert web.record([event("session:s1", 31, state="idle")]) == [None]
    assert web.upsert_worktrees("web", [tree("web")], at(32, 33), 1) == []
    added = web.add_project("/srv/web", 40)
    assert (added.project.id, added.new) == ("web", True)
    assert [look.incarnation for look in web.upsert_worktrees("web", [tree("web")], at(50, 60), 1)] == [2]


def test_the_workspace_at_a_path_is_the_innermost_that_contains_it(web, tmp_path):
    outer, inner = tmp_path / "repo", tmp_path / "repo" / "trees" / "fix"
    inner.mkdir(parents=True)
    trees = [Worktree(str(path), "b", str(path), str(path), 1, "") for path in (outer, inner)]
    web.upsert_worktrees("web", trees, at(30, 40), 1)
    assert web.workspace_at(inner / "src" / "a.py").path == str(inner)
    assert web.workspace_at(outer / "trees").path == str(outer)
    assert web.workspace_at(tmp_path) is None


def test_paths_that_are_no_utf8_and_large_inodes_are_kept_as_they_are(web):
    path = os.fsdecode(b"/srv/caf\xe9")
    [look] = web.upsert_worktrees("web", [tree("web"), Worktree(path, "b", path, path, 2**64 - 1, "")], at(30, 40), 1)
    target = next(target for target in web.targets() if target.workspace == look.workspace)
    assert (target.path, target.inode) == (path, 2**64 - 1)
    assert look.value.name == "caf\ufffd"
    assert web.workspace_at(path).id == look.workspace


# ── events ───────────────────────────────────────────────────────────────────────────────────────


def test_an_event_changes_the_fields_it_names_clears_nulls_and_keeps_the_rest(web):
    [first] = web.record([event("session:s1", 30, provider="claude", state="waiting", waiting_for="plan")])
    assert (first.revision, first.at_ms, first.domain) == (1, 30, web.domain())
    [second] = web.record([event("session:s1", 40, state="working", waiting_for=None)])
    assert second.value == Session(provider="claude", state="working")
    assert (second.revision, second.stamp, second.producer) == (2, at(40), "test")


def test_an_older_event_changes_nothing_and_comes_back_without_a_revision(web):
    [now] = web.record([event("session:s1", 40, state="working")])
    [late] = web.record([event("session:s1", 30, state="idle")])
    assert late.revision is None
    assert weigh(now, late).verdict == "older"
    [after] = web.record([event("session:s1", 50, name="x")])
    assert after.value.state == "working"


def test_a_runs_own_sequence_is_better_than_any_clock(web):
    web.record([event("session:s1", 40, run="r", seq=5, state="working")])
    [late] = web.record([event("session:s1", 50, run="r", seq=4, state="idle")])
    assert late.revision is None
    [newer] = web.record([event("session:s1", 30, run="r", seq=6, state="idle")])
    assert (newer.value.state, newer.revision) == ("idle", 2)


def test_the_same_event_again_writes_nothing(web):
    [once] = web.record([event("session:s1", 40, run="r", seq=5, state="working")])
    watch = catalogs.ChangeWatch(web)
    watch.check()
    assert web.record([event("session:s1", 40, run="r", seq=5, state="working")]) == [once]
    assert watch.check() == "same"
    watch.close()


def test_events_of_one_batch_at_one_instant_count_in_their_order(web):
    looks = web.record([event("session:s1", 40, state="working"), event("session:s1", 40, state="idle")])
    assert [(look.value.state, look.revision) for look in looks] == [("working", 1), ("idle", 2)]


def test_a_repeated_value_keeps_the_moment_at_which_it_became_so(web):
    web.record([event("session:s1", 40, state="working")])
    [look] = web.record([event("session:s1", 50, state="working")])
    assert (look.at_ms, look.stamp, look.revision) == (40, at(50), 2)


def test_two_sessions_of_one_worktree_do_not_touch_each_other(web):
    web.record([event("session:a", 40, state="working"), event("session:b", 41, state="idle")])
    [a, b] = web.record([event("session:a", 50, name="A"), event("session:b", 51, name="B")])
    assert (a.value.state, b.value.state) == ("working", "idle")


def test_checks_belong_to_the_current_pull_request_unless_they_say_otherwise(web):
    [pr] = web.record([event("pr", 30, number=1, state="open", head="aaa")])
    [ci] = web.record([event("ci", 31, state="pending", passed=3)])
    assert pr.key == ci.key == Key(1, "aaa")
    assert pr.value == Pr(number=1, state="open")
    [foreign] = web.record([event("ci", 32, state="failure", pr=9, head="zzz")])
    assert (foreign.key, foreign.value) == (Key(9, "zzz"), Ci(state="failure"))


def test_a_new_head_and_a_new_pull_request_inherit_nothing(web):
    web.record(
        [event("pr", 30, number=1, state="merged", url="u", head="aaa"), event("ci", 31, state="success", passed=3)]
    )
    [_, ci] = web.record([event("pr", 40, head="bbb"), event("ci", 41, state="pending")])
    assert (ci.key, ci.value) == (Key(1, "bbb"), Ci(state="pending"))
    [pr, ci] = web.record([event("pr", 50, number=2, state="open"), event("ci", 51, state="pending")])
    assert (pr.key, pr.value) == (Key(2, ""), Pr(number=2, state="open"))
    assert ci.key == Key(2, "")


def test_checks_without_any_pull_request_have_no_key(web):
    [ci] = web.record([event("ci", 31, state="pending")])
    assert ci.key is None


def test_only_life_makes_a_workspace_and_only_in_a_project_that_is_there(web):
    looks = web.record(
        [
            event("session:s", 30, "new-1", state="idle"),
            event("life", 31, "new-1", phase="archived"),
            event("life", 32, "new-1", project="nowhere", phase="ready"),
            event("life", 33, "new-1", phase="provisioning", name="New", path="/srv/new"),
            event("session:s", 34, "new-1", state="starting"),
        ]
    )
    assert looks[:3] == [None, None, None]
    assert looks[3].value == Life("New", "provisioning")
    assert looks[4].value.state == "starting"
    assert [target.workspace for target in web.targets()] == [WEB], "git has not listed it yet"
    web.upsert_worktrees("web", [tree("web"), tree("new", "topic")], at(40, 50), 1)
    assert {target.workspace for target in web.targets()} == {WEB, "new-1"}
    assert web.workspace("new-1").phase == "provisioning", "its orchestrator says when it is ready"
    assert web.workspace("new-1").branch == "topic"


def test_a_workspace_is_not_written_through_another_project(web):
    web.add_project("/srv/other", 2)
    assert web.record([event("session:s", 30, project="other", state="idle")]) == [None]
    assert web.record([event("life", 30, project="other", phase="archived")]) == [None]


def test_an_orchestrator_that_names_a_discovered_worktree_takes_it_over(web):
    looks = web.record([event("life", 30, "ws-1", phase="ready", path="/srv/web")])
    assert [(look.workspace, look.value.phase) for look in looks] == [("ws-1", "ready"), (WEB, "archived")]
    assert [target.workspace for target in web.targets()] == ["ws-1"]
    assert web.upsert_worktrees("web", [tree("web")], at(40, 50), 1)[0].workspace == "ws-1"
    assert [workspace.id for workspace in web.workspaces()] == ["ws-1"]


def test_an_archive_inside_the_interval_of_a_listing_counts(web):
    [look] = web.record([event("life", 15, phase="archived")])
    assert (look.value.phase, look.revision) == ("archived", 2)
    [late] = web.record([event("session:s", 16, state="idle")])
    assert late.revision is None
    [reborn] = web.record([event("life", 20, phase="ready")])
    assert (reborn.incarnation, reborn.value.phase) == (2, "ready")
    [late] = web.record([event("life", 12, phase="archived")])
    assert late.revision is None


def test_activity_is_written_now_and_then_and_a_change_at_once(web):
    second = 1_000_000_000
    [first] = web.record([event("terminal", second, active=True, last_output=1)])
    [soon] = web.record([event("terminal", second + 1, last_output=2)])
    assert soon.value == Terminal(True, 2)
    assert soon.revision == first.revision, "not written"
    assert weigh(first, soon).verdict == "applied"
    [off] = web.record([event("terminal", second + 2, active=False)])
    assert off.revision == first.revision + 1
    [later] = web.record([event("terminal", second + 2 + ACTIVITY_NS, last_output=3)])
    assert later.revision == off.revision + 1


def test_of_exited_sessions_the_newest_are_kept_and_the_others_said_to_be_gone(web):
    many = KEPT_SESSIONS + 3
    web.record([event(f"session:s{n:03}", 100 + n, state="exited") for n in range(many - 1)])
    web.record([event("session:alive", 300, state="working")])
    looks = web.record([event(f"session:s{many - 1:03}", 100 + many, state="exited")])
    assert looks[0].value == Session(state="exited")
    assert [(look.group, look.value) for look in looks[1:]] == [("session:s002", None)]
    [again] = web.record([event("session:s002", 400, state="working")])
    assert again.revision > looks[1].revision


def test_sessions_that_never_end_make_room_for_those_that_matter(web):
    web.record([event("session:asks", 90, state="waiting")])
    web.record([event(f"session:s{n:03}", 100 + n, state="idle") for n in range(MOST_SESSIONS - 1)])
    [asks, *gone] = web.record([event("session:new", 500, state="waiting")])
    assert asks.value == Session(state="waiting")
    assert [(look.group, look.value) for look in gone] == [("session:s000", None)]
    [_, *gone] = web.record([event("session:late", 600, state="idle")])
    assert [(look.group, look.value) for look in gone] == [("session:s001", None)]


def test_an_empty_batch_is_fine(web):
    assert web.record([]) == []


def test_a_hundred_events_cost_as_many_statements_as_one(web):
    web.upsert_worktrees("web", [tree(f"t{n}") for n in range(20)], at(30, 40), 1)
    homes = [workspace.id for workspace in web.workspaces()]
    statements = []
    listen(web.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

    def cost(number, when):
        statements.clear()
        web.record([event(f"session:s{n}", when, homes[n % 20], state="working") for n in range(number)])
        return len(statements)

    # On a server, two more: to take turns, and to notify.
    most = 6 if web.database.path else 8
    assert cost(100, 100) <= most
    assert cost(1, 200) == cost(100, 300) <= most
    looks = web.record([event(f"session:s{n}", 400, homes[n % 20], state="idle") for n in range(100)])
    assert {look.revision for look in looks[1:]} == {3}


def test_a_bad_write_leaves_nothing_behind(web):
    bad = event("session:s2", 40, state="working")
    with pytest.raises(ValueError, match="session row cannot be read"):
        web.record([event("session:s1", 40, state="working"), Observed(**{**_fields(bad), "fields": {"state": 3}})])
    [look] = web.record([event("session:s1", 50, name="x")])
    assert look.value.state is None


def _fields(event):
    return {name: getattr(event, name) for name in event.__struct_fields__}


def test_an_unknown_schema_is_said_to_be_newer(url):
    catalog = catalogs.open_url(url)
    with catalog.database.write() as tx:
        tx.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    catalog.close()
    with pytest.raises(catalogs.CatalogUnavailable, match="newer treewire"):
        catalogs.open_url(url)


def test_a_lost_identity_is_an_error(catalog, url):
    with catalog.database.write() as tx:
        tx.execute(update(tables.meta).values(name="was-identity"))
    other = catalogs.Catalog(url)
    with pytest.raises(catalogs.CatalogUnavailable, match="lost its identity"):
        other.identity()
    other.close()


# ── what waits ───────────────────────────────────────────────────────────────────────────────────


def test_what_a_hook_told_of_a_wait_stands_until_the_session_goes_on(web):
    def say(when, producer, workspace=WEB, session="claude-a", **fields):
        told = event(f"session:{session}", when, workspace, **fields)
        web.record([msgspec.structs.replace(told, producer=producer)])

    web.add_project("/srv/api", 1)
    web.upsert_worktrees("api", [tree("api", inode=2)], at(10, 20), 1)
    api = worktree_id("/srv/api")
    say(30, "hook", state="waiting", waiting_for="permission", waiting_by="a1", waiting_tool="Bash")
    here = Standing("web", WEB, Wait("a1", "Bash"))
    assert web.standing("claude-a") == [here]
    say(40, "live: claude registry", state="waiting", model="m")
    assert web.standing("claude-a") == [here], "whoever watches it knows no better"
    say(45, "script", state="waiting", session="s")
    assert web.standing("s") == [], "a name that somebody chose"
    say(50, "live: claude registry", state="working")
    assert web.standing("claude-a") == [Standing("web", WEB)]
    say(60, "live: claude registry", state="waiting")
    assert web.standing("claude-a") == [Standing("web", WEB)], "of this wait no hook told"
    web.record([event("session:claude-a", 70, api, project="api", state="idle")])
    assert web.standing("claude-a") == [Standing("web", WEB)]
    say(80, "hook", state="exited")
    assert web.standing("claude-a") == []
    say(90, "hook", state="idle")
    web.archive_workspace(WEB, at(100), 100)
    assert web.standing("claude-a") == []


def test_a_database_of_the_release_before_is_brought_up_to_date_with_its_sessions(tmp_path):
    url = f"sqlite:///{tmp_path}/treewire.db"
    catalog = catalogs.open_url(url)
    catalog.add_project("/srv/web", 1)
    catalog.upsert_worktrees("web", [tree("web")], at(10, 20), 1)
    catalog.record([event("session:s", 30, state="waiting", waiting_for="plan")])
    with catalog.engine.connect() as connection, connection.begin():
        for column in ("waiting_by", "waiting_tool"):
            connection.exec_driver_sql(f"ALTER TABLE session DROP COLUMN {column}")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    catalog.close()
    with pytest.raises(CatalogUnavailable, match="restart treewire"):
        catalogs.Catalog(url).projects()
    again = catalogs.open_url(url)
    (kept,) = again.sessions()
    assert (kept.value.state, kept.value.waiting_for) == ("waiting", "plan")
    again.close()
