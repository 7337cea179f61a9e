"""Bugs that systems of this kind are known for, in sources, catalog, workers and gateway: each test is named after what
holds here instead. Databases, git and the hub are real; sockets and aggregator are played."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import select, update

from gateway import framing
from gateway.copy import Copy
from gateway.hub import Hub
from gateway.session import Close, Session
from gateway.socket import Outlet, Tally
from gateway.tokens import OPERATOR
from pipeline import bus, catalog, frames, wire
from pipeline.bridges import factory_factory
from pipeline.bridges import git as git_bridge
from pipeline.catalog import Catalog, Observed, Target, Worktree, tables
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Life, Look, Stamp
from pipeline.domain.model import Session as SessionValue
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger
from pipeline.reconciler.readers.catalog import read
from pipeline.runtime.clock import now_ns
from tests.board import Board, forget_the_start
from tests.foreign import ISO, FactoryFactory
from tests.gitkit import add_worktree, make_repo, write
from tests.laws.looks import CLOCK, WALL, store
from tests.oracle import job_for
from workers.git import Looker
from workers.jobs import MS, Policy, S, Table
from workers.worker import look_at

HEARTBEAT_MS: Final = 10
WEB: Final = worktree_id("/srv/web")

# ── followers ────────────────────────────────────────────────────────────────────────────────────


def test_a_follower_leaves_deltas_alone_that_are_older_than_its_image() -> None:
    """W3. Known as: deltas that were buffered while the baseline was fetched are applied over a newer baseline."""
    source = Ledger()
    source.write("w", [("git", {"files": 1})])
    buffered = [(0, 1, source.since(0))]
    source.write("w", [("git", {"files": 2}), ("session:s", {"state": "working"})])
    buffered.append((1, 2, source.since(1)))
    source.write("w", [("session:s", None)])
    source.remove("w")
    replica = Replica()
    replica.load("e1", Ledger.load(source.version, source.floor, source.dump(), source.gone), True)
    for from_, to, patch in buffered:
        assert patch is not None
        assert replica.take("e1", from_, to, patch) == "old"
    assert replica.ledger is not None
    assert (replica.ledger.state(), replica.ledger.hash()) == ({}, source.hash())


def test_a_client_leaves_deltas_alone_that_are_older_than_its_snapshot() -> None:
    """W3. The same on the other side of the socket."""
    copy = _subscribed()
    copy.take(_snapshot(5, {"w": {"git": {"files": 5}}}), 2)
    assert copy.take(_delta(3, 4, {"w": {"git": {"files": 4}}, "gone": {"git": {"files": 1}}}), 3).kind is None
    assert (copy.workspaces, copy.version) == ({"w": {"git": {"files": 5}}}, 5)


def test_one_value_that_a_client_does_not_know_costs_nothing_but_its_name() -> None:
    """W7. Known as: one bad entry fails the validation of a whole message, and the screen stands still."""
    copy = _subscribed()
    strange = {"w": {"git": {"files": 1}}, "odd": {"life": {"phase": "teleporting"}, "weather": {"rain": True}}}
    copy.take(_snapshot(1, strange), 1)
    assert copy.workspaces == strange
    answer = copy.take(_delta(1, 2, {"w": {"git": {"files": 2}}, "odd": {"status": {"code": "unheard_of"}}}), 2)
    assert answer.kind == "delta"
    assert copy.workspaces is not None
    assert copy.workspaces["w"] == {"git": {"files": 2}}
    assert copy.malformed == 0


def _subscribed() -> Copy:
    copy = Copy("web")
    limits = {"subscriptions": 32, "frame_bytes": 65536}
    welcome = {"type": "welcome", "protocol": 1, "epoch": "e1", "heartbeat_ms": 1000, "limits": limits}
    assert copy.take(json.dumps(welcome), 1).says
    return copy


def _snapshot(version: int, workspaces: dict[str, Any]) -> str:
    told = {"type": "snapshot", "id": 1, "epoch": "e1", "version": version, "hash": "0" * 16, "reason": "initial"}
    return json.dumps({**told, "complete": True, "workspaces": workspaces})


def _delta(from_: int, to: int, patch: dict[str, Any]) -> str:
    return json.dumps({"type": "delta", "id": 1, "epoch": "e1", "from": from_, "to": to, "patch": patch})


# ── git ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_git_that_fails_leaves_the_good_numbers_as_they_are(tmp_path: Path) -> None:
    """G1, S7. Known as: one failed git run becomes an authoritative null over good statistics."""
    repo = make_repo(tmp_path / "repo", {"a.txt": "one\n"})
    worktree = add_worktree(repo, tmp_path / "work", "task")
    write(worktree, {"a.txt": "one\ntwo\n", "b.txt": "new\n"})
    (tmp_path / "cache").mkdir(mode=0o700)
    looker, s = Looker(tmp_path / "cache"), store()
    job = job_for(worktree)

    def looked() -> tuple[wire.Done, Look | None]:
        done = look_at(job, "worker-0", looker)
        return done, git_bridge.look(done, "web", 1, CLOCK)

    done, good = looked()
    assert good is not None
    at = Stamp(good.stamp.began - 2, good.stamp.began - 1, CLOCK)
    s.admit(_life(at), WALL)
    s.admit(good, WALL)
    before = s.projects["web"].state()["w1"]["git"]
    assert (before["files"], before["insertions"]) == (2, 2)
    objects = repo / ".git" / "objects"
    objects.rename(tmp_path / "elsewhere")
    done, bad = looked()
    assert (done.git, bad) == (None, None)
    assert done.error
    (tmp_path / "elsewhere").rename(objects)
    assert looked()[0].git == good.value  # and the next one finds it well again
    assert s.projects["web"].state()["w1"]["git"] == before


def test_marks_without_end_do_not_put_a_look_off_for_ever() -> None:
    """G3, W2. Known as: a debounce that each event begins anew starves while there is work."""
    policy = Policy(deadline_ns=10 * S, active_ns=30 * S, idle_ns=300 * S, debounce_ns=20 * MS, max_wait_ns=100 * MS)
    now, table = 1000 * S, Table(policy)
    table.retarget([Target("w", "p", 1, "/w", "/r/.git/worktrees/w", "/r/.git", 7, "main")], now)
    ran: list[int] = []
    for _ in range(3000):
        now += MS
        table.ready(b"w0", "w0", now)
        table.mark("w", "tree", now)
        for lease in table.assign(now):
            ran.append(now)
            table.done(lease.id, "", now, scoped=not lease.full)
    gaps = [after - before for before, after in itertools.pairwise(ran)]
    assert len(ran) > 20
    assert max(gaps) <= policy.max_wait_ns + 5 * MS


# ── catalog and sources ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Catalog]:
    """A catalog with one project and its main worktree, seen at 10..20."""
    (tmp_path / "home").mkdir(mode=0o700)
    found = catalog.open_url(f"sqlite:///{tmp_path}/home/treewire.db")
    found.add_project("/srv/web", 1)
    found.upsert_worktrees("web", [_tree("main")], Stamp(10, 20, CLOCK), 1)
    yield found
    found.close()


def _tree(branch: str) -> Worktree:
    return Worktree("/srv/web", branch, "/srv/web/.git", "/srv/web/.git", 1, "main")


def _event(group: str, at: int, at_ms: int = WALL, **fields: Any) -> Observed:
    return Observed("web", WEB, group, fields, Stamp(at, at, CLOCK), at_ms, producer="test")


def _life(at: Stamp) -> Look:
    return Look("web", "w1", "life", Life(name="one", phase="ready"), at, "catalog")


@pytest.mark.parametrize("state", ["exited", "error", "idle", "working", "starting", "unknown"])
def test_a_session_that_goes_on_or_ends_waits_for_nothing_any_more(web: Catalog, state: str) -> None:
    """S1, S7. Known as: a session is stopped while it asks for permission, and the request stays on the screen."""
    web.record([_event("session:s", 30, state="waiting", waiting_for="permission", provider="claude")])
    (look,) = web.record([_event("session:s", 40, state=state)])
    assert look is not None
    assert look.value == SessionValue(provider="claude", state=state)  # type: ignore[arg-type]
    census = read(web, lambda: 50, CLOCK).census
    assert [row.value for row in census.looks if row.group == "session:s"] == [look.value]


def test_a_session_that_comes_back_has_not_crashed_any_more(web: Catalog) -> None:
    """S7. The same for a crash: it is said of a session that exited."""
    web.record([_event("session:s", 30, state="exited", crashed=True)])
    (still,) = web.record([_event("session:s", 40, state="exited")])
    assert still is not None
    assert still.value == SessionValue(state="exited", crashed=True)
    (again,) = web.record([_event("session:s", 50, state="working")])
    assert again is not None
    assert again.value == SessionValue(state="working")


def test_an_update_that_comes_after_the_archive_is_not_written(web: Catalog) -> None:
    """S1, S5. Known as: archive while an update is queued; here the queue before the database."""
    update_ = _event("session:s", 90, state="working")
    web.archive_workspace(WEB, Stamp(30, 30, CLOCK), WALL)
    (look,) = web.record([update_])
    assert look is not None
    assert look.revision is None  # it is sent on to be ruled on, and no row says it
    with web.database.read() as tx:
        assert tx.execute(select(tables.session)).all() == []
    assert (web.sessions(), web.workspaces(), read(web, lambda: 100, CLOCK).census.looks) == ([], [], [])


def test_that_a_process_was_running_in_a_database_does_not_mean_that_it_works(tmp_path: Path) -> None:
    """S3. Known as: a persisted RUNNING is read as working, and stays so after the tool was restarted."""
    tool = FactoryFactory(tmp_path / "data.db")
    tool.insert("Workspace", id="w1", projectId="p1", name="one", status="READY", createdAt=ISO, updatedAt=ISO)
    session = {"workflow": "fix", "model": "opus", "provider": "CLAUDE", "createdAt": ISO, "updatedAt": ISO}
    tool.insert("AgentSession", id="s1", workspaceId="w1", status="RUNNING", **session)
    rows: dict[str, list[dict[str, Any]]] = {}
    with tool.open() as db:
        for table, columns in factory_factory.NEEDS.items():
            found = db.execute(f"SELECT {', '.join(columns)} FROM {table}")
            rows[table] = [dict(zip(columns, row, strict=True)) for row in found]
    picture = factory_factory.picture(rows)
    (fact,) = (fact for group, fact in picture.homes["w1"].facts.items() if group.startswith("session:"))
    assert fact.fields["state"] == "unknown"


def test_one_row_that_cannot_be_read_hides_and_ends_nothing_else(web: Catalog) -> None:
    """W7, R2. Known as: one bad row fails the whole poll, or takes the workspace for absent."""
    s = store()
    web.upsert_worktrees("web", [_tree("main")], Stamp(21, 22, CLOCK), WALL)
    other = Observed("web", "other", "life", {"name": "other"}, Stamp(25, 25, CLOCK), WALL, producer="test")
    web.record([other, _event("session:s", 26, state="idle"), _event("session:t", 27, state="working")])
    s.census(read(web, lambda: 30, CLOCK).census, WALL)
    before = s.projects["web"].state()
    assert set(before) == {WEB, "other"}
    with web.database.write() as tx:
        tx.execute(update(tables.session).where(tables.session.c.id == "s").values(state="levitating"))
        tx.execute(update(tables.workspace).where(tables.workspace.c.id == "other").values(phase="beyond"))
    reading = read(web, lambda: 40, CLOCK)
    assert len(reading.problems) == 2
    assert s.census(reading.census, WALL).buried == []
    assert s.projects["web"].state() == before
    assert sum(look.group == "session:t" for look in reading.census.looks) == 1


def test_a_branch_or_name_that_changes_alone_is_told(web: Catalog) -> None:
    """W2. Known as: a rename emits nothing."""
    (switched,) = web.upsert_worktrees("web", [_tree("fix")], Stamp(30, 40, CLOCK), WALL)
    (named,) = web.record([_event("life", 50, name="the fix")])
    assert named is not None
    s = store()
    s.admit(switched, WALL)
    version = s.projects["web"].version
    s.admit(named, WALL + 1)
    assert switched.value.branch == "fix"  # type: ignore[union-attr]
    assert s.projects["web"].since(version) == {WEB: {"life": {"name": "the fix", "changed_at": WALL}}}


def test_an_event_counts_although_the_wall_clock_was_set_back_before_it(web: Catalog) -> None:
    """S4. Known as: a clock step freezes a group; here the row."""
    web.record([_event("terminal", 30, at_ms=WALL, active=False)])
    (look,) = web.record([_event("terminal", 40, at_ms=WALL - 3_600_000, active=True)])
    assert look is not None
    (row,) = (one for one in read(web, lambda: 50, CLOCK).census.looks if one.group == "terminal")
    assert row.value == look.value
    assert row.value.active is True  # type: ignore[union-attr]


# ── gateway ──────────────────────────────────────────────────────────────────────────────────────


class Pipe:
    """A transport that takes everything, unless it is told to fail."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.fails = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        if self.fails:
            raise RuntimeError("this transport is broken")
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def frames(self, kind: str) -> list[dict[str, Any]]:
        told = (json.loads(one) for data in self.written for one in framing.payloads(data))
        return [frame for frame in told if frame["type"] == kind]


class Wire(Outlet):
    """A client without a network. The last heartbeat is acknowledged when it says so."""

    def __init__(self, hub: Hub) -> None:
        self.pipe = Pipe()
        self.why: Close | None = None
        session = Session(hub, HEARTBEAT_MS, now_ns(), caller=OPERATOR)
        super().__init__(hub, Tally(), session, self.pipe, {OPERATOR.token_id: OPERATOR}.get)  # type: ignore[arg-type]
        self.join()
        self.say(type="hello")
        self.say(type="subscribe", id=0, project="web")

    def say(self, **message: Any) -> None:
        self.session.receive(json.dumps(message).encode(), now_ns())
        self._hub.serve(self)

    def wrote(self, now: int) -> None:
        """Nobody waits for it."""

    def lost(self) -> None:
        """Nobody waits for it."""

    def part(self, why: Close) -> None:
        self.why = why
        self.pipe.write(framing.close(why.code, why.reason))


class World:
    """A real hub and a project that changes."""

    def __init__(self, run_dir: Path) -> None:
        self.unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.hub = Hub(run_dir, "gateway-0", lambda: "ok")
        self.hub.follower.head = wire.Heartbeat("e1", 1, now_ns(), {}, census_ns=1)
        self.hub.follower.heard_ns = now_ns()
        self.replica = self.hub.follower.replicas["web"] = Replica()
        self.replica.load("e1", Ledger(), True)

    def write(self, files: int) -> None:
        assert self.replica.ledger is not None
        self.replica.ledger.write("w", [("git", {"files": files})])
        self.hub._changed({"web"})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    found.hub.close()
    bus.close()


async def until(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_socket_that_throws_is_closed_and_all_others_are_served(world: World) -> None:
    """W4, W5. Known as: one throwing socket stops the fan-out, for whoever comes after it in the list."""
    before, broken, after = ([Wire(world.hub) for _ in range(20)] for _ in range(3))
    for client in broken:
        client.pipe.fails = True
    await asyncio.sleep(2 * world.hub.tick())
    world.write(1)
    world.write(2)
    well = [*before, *after]
    await until(lambda: all(client.pipe.frames("delta")[-1:] and client.seat.cursor for client in well))
    await until(lambda: all(client.pipe.frames("delta")[-1]["to"] == 2 for client in well))
    assert [client.why and client.why.code for client in broken] == [frames.INTERNAL] * len(broken)
    assert world.hub.clients == set(well)
    assert len(world.unhandled) >= len(broken)  # that is logged
    for client in well:  # however long all this took
        client.say(type="ack", n=client.session.n, subscriptions={})
    world.hub.sweep()
    assert {client.why for client in well} == {None}


async def test_a_client_that_throws_when_it_is_looked_after_ends_no_sweep(world: World) -> None:
    """W4. The same where time alone brings something about, and where grants change."""
    one, broken, other = (Wire(world.hub) for _ in range(3))

    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    broken.check = fail  # type: ignore[method-assign]
    world.hub.sweep()
    assert world.hub.clients == {one, other}
    broken = Wire(world.hub)
    broken.regrant = fail  # type: ignore[method-assign]
    world.hub.regrant()
    assert world.hub.clients == {one, other}
    assert len(world.unhandled) == 2


async def test_who_acknowledges_nothing_is_closed_however_lively_the_others_are(world: World) -> None:
    """W5. Known as: the reaper of silent connections does nothing while any client is connected."""
    lively, silent = Wire(world.hub), Wire(world.hub)

    def beat() -> bool:
        world.hub.sweep()
        for heartbeat in lively.pipe.frames("heartbeat")[-1:]:
            lively.say(type="ack", n=heartbeat["n"], subscriptions={})
        return silent.why is not None

    await until(beat)
    assert silent.why is not None
    assert silent.why.code == frames.NO_ACK
    assert lively.why is None


@pytest.mark.parametrize(
    ("epoch", "version", "kind", "reason"),
    [
        ("e0", 2, "snapshot", "epoch"),
        ("e1", 0, "snapshot", "floor"),
        ("e1", 10**9, "snapshot", "ahead"),
        ("e1", -1, "delta", ""),
        (None, None, "snapshot", "initial"),
    ],
)
def test_every_cursor_is_answered(epoch: str | None, version: int | None, kind: str, reason: str) -> None:
    """W3. Known as: a stale cursor is answered with silence, and the client waits for ever."""
    board = Board()
    ledger = board.project()
    forget_the_start(ledger)
    board.changed()
    cursor = {} if version is None else {"epoch": epoch, "version": version if version >= 0 else ledger.version}
    session = Session(board, 10_000, 0, caller=OPERATOR)
    session.receive(b'{"type":"hello"}', 0)
    session.due(0)
    session.receive(json.dumps({"type": "subscribe", "id": 1, "project": "web", **cursor}).encode(), 0)
    told = [json.loads(one) for now in (0, 2 * S) for data in session.due(now) for one in framing.payloads(data)]
    answers = [frame for frame in told if frame.get("id") == 1]
    assert [(frame["type"], frame.get("reason", "")) for frame in answers] == [(kind, reason)]
    assert answers[0].get("version", answers[0].get("to")) == ledger.version
