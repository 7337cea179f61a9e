"""From a file that is written to numbers in the feed: real repositories, real processes, a real aggregator."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline import bus, gitdir, wire
from pipeline.catalog import Catalog, Worktree, open_url
from pipeline.cli.explain import ask
from pipeline.domain.model import Census, Life, Look, Session, Stamp
from pipeline.follow import Follower
from pipeline.runtime.beat import Beat, read_beat
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from tests.gitkit import add_worktree, commit, git, make_repo, write
from tests.oracle import expected

pytestmark = [pytest.mark.timeout(90), pytest.mark.xdist_group("git pipeline")]

PATIENCE_S = 20.0
QUIET = {"TREEWIRE_GIT__ACTIVE_S": "600", "TREEWIRE_GIT__IDLE_S": "600"}


class Deployment:
    """An aggregator, a dispatcher and workers on one home; this process plays the reconciler and a client."""

    def __init__(self, root: Path, hash: str, **settings: str) -> None:
        self.home = root / "home"
        self.run_dir = self.home / "run"
        self.repo = make_repo(root / "web", {"a.txt": "one\n", "src/b.txt": "two\n"}, hash=hash)
        self.env = {**os.environ, "TREEWIRE_HOME": str(self.home), **QUIET, **settings}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.home.mkdir(mode=0o700)
        self.run_dir.mkdir(mode=0o700)
        self.catalog: Catalog = open_url(f"sqlite:///{self.home / 'treewire.db'}")
        self.project = self.catalog.add_project(self.repo, wall_ms()).project.id
        self.paths: dict[str, Path] = {}
        self.events: list[wire.JobEvent] = []
        self.follower = Follower(self.run_dir)
        self.ingress = bus.Ingress(self.run_dir)
        self.taps = bus.tap(self.run_dir, self._tapped)

    def _tapped(self, messages: list[wire.Tap]) -> None:
        self.events += [message for message in messages if isinstance(message, wire.JobEvent)]

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def start(self, name: str, index: int | None = None) -> None:
        code = "from pipeline.cli.run import MAINS; from pipeline.runtime import process; "
        code += "from pipeline.runtime.settings import Settings; from importlib import import_module; "
        code += f"m, _, f = MAINS[{name!r}].partition(':'); "
        code += f"process.run({name!r}, getattr(import_module(m), f), Settings.load(), {index})"
        full = name if index is None else f"{name}-{index}"
        with open(self.home / f"{full}.log", "ab") as log:
            self.processes[full] = subprocess.Popen(
                [sys.executable, "-c", code], env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.follower.close()
        for end in (self.ingress, *self.taps):
            end.close()
        self.catalog.close()

    def logs(self) -> str:
        return "\n".join(f"── {log.name}\n{log.read_text()}" for log in sorted(self.home.glob("*.log")))

    def beat(self, name: str) -> Beat:
        beat = read_beat(self.run_dir / f"{name}.beat")
        assert beat is not None
        return beat

    async def beaten(self, name: str = "dispatcher") -> None:
        """Its figures count all that has happened up to now."""
        now = now_ns()
        await self.until(lambda: self.beat(name).boot_ns > now, f"a beat of the {name}")

    def figure(self, key: str, name: str = "dispatcher") -> Any:
        beat = read_beat(self.run_dir / f"{name}.beat")
        return None if beat is None else beat.figures.get(key)

    # ── the reconciler's part ────────────────────────────────────────────────────────────────────

    def worktree(self, branch: str) -> str:
        """A new worktree, found at the next `census`; its workspace's id."""
        path = add_worktree(self.repo, self.repo.parent / branch.replace("/", "-"), branch)
        self.paths[branch] = path
        self.discover()
        return self.workspace(branch)

    def workspace(self, branch: str) -> str:
        return next(w.id for w in self.catalog.workspaces() if w.path == str(self.paths[branch]))

    def discover(self) -> None:
        found = []
        for branch, path in self.paths.items():
            if path.exists():
                dirs = gitdir.resolve(path)
                found.append(Worktree(str(path), branch, str(dirs.git_dir), str(dirs.common_dir), dirs.inode, "main"))
        now = now_ns()
        self.catalog.upsert_worktrees(self.project, found, Stamp(now, now, CLOCK), wall_ms())

    async def census(self) -> None:
        """Say what exists, as the reconciler would: read while the aggregator was there already."""
        await self.until(lambda: self.follower.epoch, "the aggregator is heard of")
        began, domain = now_ns(), self.catalog.domain()
        workspaces = self.catalog.workspaces()
        stamp = Stamp(began, now_ns(), CLOCK)
        looks = [
            Look(w.project, w.id, "life", Life(name=w.name, phase="ready"), stamp, "catalog", incarnation=w.incarnation)
            for w in workspaces
        ]
        await self.send(Census(stamp, "catalog", domain, [self.project], looks))

    async def send(self, message: wire.Ingress) -> None:
        await self.until(lambda: self.ingress.send(message), "the aggregator takes messages")

    # ── the client's part ────────────────────────────────────────────────────────────────────────

    def git(self, workspace: str) -> dict[str, Any]:
        replica = self.follower.replicas.get(self.project)
        if replica is None or replica.ledger is None:
            return {}
        entry = replica.ledger.entries.get(workspace)
        return dict(entry.groups["git"].values) if entry is not None and "git" in entry.groups else {}

    async def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> float:
        """Wait for a condition; returns the seconds it took. A failure tells what the processes said."""
        began = time.monotonic()
        while not condition():
            dead = [name for name, process in self.processes.items() if process.poll() not in (None, -9)]
            assert not dead, f"{dead} ended\n{self.logs()}"
            assert time.monotonic() - began < seconds, f"in vain: {what}\n{self.events}\n{self.logs()}"
            await asyncio.sleep(0.005)
        return time.monotonic() - began

    async def shows(self, workspace: str, **values: Any) -> float:
        return await self.until(
            lambda: {key: self.git(workspace).get(key) for key in values} == values, f"{workspace} shows {values}"
        )

    def unseen(self) -> bool:
        head = self.follower.head
        return head is not None and not any(project.watched for project in head.heads.values())

    async def quiet(self) -> None:
        """Whatever was under way is over: no job began for a while, and the trees are watched."""
        await self.until(lambda: self.figure("watched_trees") == len(self.paths), "all trees are watched")
        seen = -1
        while seen != len(self.events):
            seen = len(self.events)
            await asyncio.sleep(0.25)

    def started(self, workspace: str) -> int:
        return sum(1 for event in self.events if event.event == "started" and event.workspace == workspace)


@asynccontextmanager
async def deployed(workers: int = 1, hash: str = "sha1", **settings: str) -> AsyncIterator[Deployment]:
    root = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
    deployment = Deployment(root, hash, **settings)
    try:
        for name in ("aggregator", "dispatcher"):
            deployment.start(name)
        for index in range(workers):
            deployment.start("worker", index)
        yield deployment
    finally:
        deployment.stop()
        shutil.rmtree(root)


async def test_an_edit_a_commit_and_a_switch_show_at_the_feed() -> None:
    """S1, G1: nothing is asked for; what changes on the disk appears."""
    async with deployed() as tw:
        a, b = tw.worktree("a"), tw.worktree("b")
        await tw.census()
        await tw.shows(a, files=0, branch="a", ahead=0)
        await tw.shows(b, files=0, branch="b")
        await tw.quiet()
        siblings = tw.started(b)

        write(tw.paths["a"], {"src/b.txt": "two\nthree\n"})
        assert await tw.shows(a, files=1, insertions=1, unstaged=1) < 2

        write(tw.paths["a"], {"deep/er/new.txt": "1\n2\n"})
        assert await tw.shows(a, files=2, insertions=3, untracked=1) < 2
        write(tw.paths["a"], {"deep/er/new.txt": "1\n2\n3\n"})
        assert await tw.shows(a, files=2, insertions=4) < 2

        git(tw.paths["a"], "add", "-A")
        assert await tw.shows(a, staged=2, unstaged=0, untracked=0, insertions=4) < 2

        head = commit(tw.paths["a"])
        assert await tw.shows(a, head=head, ahead=1, staged=0, files=2, insertions=4) < 2

        git(tw.paths["a"], "switch", "-q", "-c", "other")
        assert await tw.shows(a, branch="other") < 2
        assert tw.started(b) == siblings, "a commit in one worktree is no business of its siblings"

        commit(tw.repo, {"a.txt": "changed\n"})
        await tw.shows(a, ahead=1, behind=1)
        await tw.shows(b, ahead=0, behind=1)
        await tw.until(lambda: any(e.workspace == b and e.why == "ref; scoped, 0 paths" for e in tw.events), "cheaply")


async def test_a_soft_reset_and_an_amended_message_show_too() -> None:
    """What moves only a ref, and what a directory of refs holds that was not there when the watch began."""
    async with deployed() as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, ahead=0)
        await tw.quiet()
        git(tw.paths["a"], "switch", "-q", "-c", "team/deep/topic")
        await tw.shows(a, branch="team/deep/topic")
        await tw.quiet()
        head = commit(tw.paths["a"], message="empty")
        await tw.shows(a, head=head, ahead=1)
        await tw.quiet()
        # The lowest way to move a branch: no index, no HEAD is touched.
        git(tw.repo, "update-ref", "refs/heads/team/deep/topic", "main")
        await tw.shows(a, ahead=0)
        await tw.quiet()
        commit(tw.repo, {"c.txt": "c\n"})
        git(tw.repo, "pack-refs", "--all")
        await tw.shows(a, behind=1)


async def test_nothing_runs_while_nothing_happens() -> None:
    """Our own looks wake no watch, and no timer runs git but the cadence."""
    async with deployed(workers=2) as tw:
        names = [tw.worktree(f"w{n}") for n in range(6)]
        await tw.census()
        for name in names:
            await tw.shows(name, files=0)
        write(tw.paths["w0"], {"a.txt": "edited\n"})
        await tw.shows(names[0], files=1)
        await tw.quiet()
        before = len(tw.events)
        await tw.beaten()
        looks = tw.figure("git_looks")
        await asyncio.sleep(1.5)
        await tw.beaten()
        assert tw.events[before:] == []
        assert tw.figure("git_looks") == looks
        # Ignored files and ignored directories are nothing that happens.
        write(tw.paths["w1"], {".gitignore": "*.log\nout/\n"})
        await tw.shows(names[1], files=1)
        write(tw.paths["w1"], {"out/x.txt": "x"})
        await tw.quiet()
        before = len(tw.events)
        write(tw.paths["w1"], {"noise.log": "1\n", "out/y.txt": "y", "out/deep/z.txt": "z"})
        write(tw.paths["w1"], {"noise.log": "2\n"})
        await asyncio.sleep(0.5)
        assert tw.events[before:] == []


async def test_a_job_names_the_paths_that_changed_and_says_when_they_are_not_all() -> None:
    async with deployed() as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()

        async def started(why: str) -> None:
            await tw.until(lambda: any(e.event == "started" and e.why == why for e in tw.events), why)
            await tw.quiet()
            tw.events.clear()

        tw.events.clear()
        write(tw.paths["a"], {"a.txt": "edited\n"})
        await tw.shows(a, files=1, unstaged=1)
        await started("tree; scoped, 1 paths")
        git(tw.paths["a"], "add", "-A")
        await tw.shows(a, staged=1)
        await started("index; scoped, 0 paths")
        (tw.paths["a"] / "src").rename(tw.paths["a"] / "lib")
        await tw.shows(a, files=2, untracked=1)
        await started("directory renamed; full")
        write(tw.paths["a"], {".gitignore": "lib/\n"})
        await tw.shows(a, files=3, untracked=1)
        await tw.until(lambda: any("ignore file" in e.why for e in tw.events), "the rules are applied to everything")


async def test_why_a_repository_of_sha256_has_full_looks_only_is_explained_and_counted(tmp_path: Path) -> None:
    async with deployed(hash="sha256") as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        write(tw.paths["a"], {"a.txt": "edited\n", "src/new.txt": "1\n2\n"})
        await tw.shows(a, files=2)
        await tw.until(lambda: metric(tw, "git_full_looks", why="sha256") > 0, "its reason is counted")
        await tw.quiet()
        told = msgspec.structs.asdict(expected(tw.paths["a"], tmp_path))
        assert {name: tw.git(a).get(name) for name in told} == told
        assert metric(tw, "git_looks", scope="scoped") == 0
        assert "sha256" in str(tw.figure("looks_full_why"))
        assert "sha256" in str(tw.figure("fallbacks", "worker-0"))
        assert any(event.event == "done" and event.why.endswith("; turned full: sha256") for event in tw.events)
        explained = await ask(tw.run_dir, a, "git")
        assert explained is not None
        assert explained.rulings["git"][-1].look.producer == "worker-0, full: sha256"


async def test_a_reftable_is_named_and_what_was_known_stays() -> None:
    async with deployed() as tw:
        a = tw.worktree("a")
        write(tw.paths["a"], {"a.txt": "edited\n"})
        await tw.census()
        await tw.shows(a, files=1)
        await tw.quiet()
        (tw.repo / ".git/reftable").mkdir()
        write(tw.paths["a"], {"new.txt": "1\n"})
        await tw.until(lambda: "reftable: " in str(tw.figure("failing_why")), "it is named")
        assert any(event.event == "failed" and event.why.startswith("reftable: ") for event in tw.events)
        assert tw.git(a)["files"] == 1, "and nothing is guessed"
        (tw.repo / ".git/reftable").rmdir()
        await tw.shows(a, files=2)


async def test_where_no_client_looks_on_the_cadence_is_slow() -> None:
    async with deployed(TREEWIRE_GIT__IDLE_S="1.5") as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        await tw.until(tw.unseen, "nobody looks on")
        before = tw.started(a)
        await asyncio.sleep(2)
        assert tw.started(a) == before
        await tw.send(wire.Interest("gateway-0", [tw.project]))
        await tw.until(lambda: tw.started(a) >= before + 2, "the cadence is kept")
        assert {event.why for event in tw.events if event.event == "started"} >= {"cadence; full"}


async def test_worktrees_that_vanish_together_are_told_in_one_line() -> None:
    async with deployed(workers=2) as tw:
        names = [f"w{n}" for n in range(12)]
        for name in names:
            tw.worktree(name)
        await tw.census()
        await tw.until(lambda: tw.figure("git_looks") and tw.figure("queue") == tw.figure("running") == 0, "all known")
        await tw.quiet()
        for name in names:
            shutil.rmtree(tw.paths[name])
        await tw.until(lambda: tw.figure("failing") == 12, "they are missed")
        await tw.until(lambda: "looks failed" in tw.logs(), "which is told")
        told = [line for line in tw.logs().splitlines() if "look failed" in line or "looks failed" in line]
        assert len(told) == 1
        assert '"worktrees":12' in told[0]
        assert "gone" in told[0]


async def test_a_worker_that_hangs_in_the_kernel_is_ended_and_its_job_goes_on() -> None:
    """Not even its deadline helps a worker that waits for a file system; what hangs here is a stopped one."""
    async with deployed(TREEWIRE_GIT__DEADLINE_MS="500") as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        hanging = tw.processes["worker-0"]
        hanging.send_signal(signal.SIGSTOP)
        write(tw.paths["a"], {"a.txt": "edited\n"})
        await tw.until(lambda: hanging.poll() == -signal.SIGKILL, "it is ended")
        tw.start("worker", 0)
        await tw.shows(a, files=1)
        assert any(event.event == "requeued" for event in tw.events)


async def test_what_nothing_told_of_is_found_by_the_cadence_and_logged_as_drift() -> None:
    """A directory that is not worth a watch and yet counts: a heavy one that nobody ignores."""
    async with deployed(TREEWIRE_GIT__ACTIVE_S="1", TREEWIRE_GIT__IDLE_S="1") as tw:
        a = tw.worktree("a")
        write(tw.paths["a"], {"node_modules/x.js": "1\n"})
        await tw.census()
        await tw.shows(a, files=1, insertions=1)
        await tw.quiet()
        write(tw.paths["a"], {"node_modules/x.js": "1\n2\n", "node_modules/y.js": "1\n"})
        await tw.shows(a, files=2, insertions=3)
        await tw.until(lambda: tw.figure("git_drift") == 2, "it is counted")
        (told,) = [line for line in tw.logs().splitlines() if "drift found" in line]
        assert f'"workspace":"{a}"' in told
        assert '"paths":2' in told


async def test_a_worker_that_is_killed_loses_nothing() -> None:
    """R3: the job goes to another worker at once, and a restarted one is welcome."""
    async with deployed(workers=2) as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        # Whoever gets the job is stopped in the middle of it by a FIFO where git expects rules, and killed there.
        os.mkfifo(tw.paths["a"] / ".gitignore")
        await tw.until(lambda: busy(tw) is not None, "a worker hangs")
        victim = busy(tw)
        assert victim is not None
        children = git_children(tw.processes[victim].pid)
        (tw.paths["a"] / ".gitignore").unlink()
        write(tw.paths["a"], {"a.txt": "edited\n"})
        tw.processes[victim].kill()
        tw.processes[victim].wait()
        assert await tw.shows(a, files=1) < 5
        assert any(event.event == "requeued" and event.workspace == a for event in tw.events)
        await tw.until(lambda: not any(alive(pid) for pid in children), "its git died with it")
        tw.start("worker", int(victim[-1]))
        await tw.until(lambda: tw.figure("workers") == 2, "the worker is back")


async def test_a_git_that_hangs_ends_by_the_deadline_and_holds_up_nobody() -> None:
    """R3: other worktrees go on meanwhile, the last good numbers stay, and why is to be seen."""
    async with deployed(workers=2, TREEWIRE_GIT__DEADLINE_MS="1500") as tw:
        bad, good = tw.worktree("bad"), tw.worktree("good")
        await tw.census()
        await tw.shows(bad, files=0)
        await tw.shows(good, files=0)
        await tw.quiet()
        os.mkfifo(tw.paths["bad"] / ".gitignore")
        await tw.until(lambda: busy(tw) is not None, "a worker hangs")
        for n in range(5):
            write(tw.paths["good"], {"a.txt": "x\n" * (n + 2)})
            assert await tw.shows(good, insertions=n + 2) < 1.5
        failed = [event for event in tw.events if event.event == "failed"]
        await tw.until(lambda: any(e.event == "failed" and e.workspace == bad for e in tw.events), "it fails", 8)
        assert not failed or failed[0].workspace == bad
        reason = next(event.why for event in tw.events if event.event == "failed")
        assert "timeout" in reason
        assert tw.git(bad)["files"] == 0, "an error is no value"
        await tw.until(lambda: tw.figure("failing") == 1, "status tells")
        (tw.paths["bad"] / ".gitignore").unlink()
        write(tw.paths["bad"], {"a.txt": "fine\n"})
        await tw.shows(bad, files=1)
        await tw.until(lambda: tw.figure("failing") == 0, "status tells")
        await tw.until(lambda: counted(tw, "done") and counted(tw, "failed"), "the metrics tell")


async def test_an_aggregator_that_starts_anew_gets_what_was_seen_without_another_look() -> None:
    """S4: the looks are sent again with the stamps of their reading."""
    async with deployed() as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        write(tw.paths["a"], {"a.txt": "edited\n"})
        await tw.shows(a, files=1)
        await tw.quiet()
        looks = tw.started(a)
        epoch = tw.follower.epoch
        tw.processes["aggregator"].kill()
        tw.processes["aggregator"].wait()
        tw.start("aggregator")
        await tw.until(lambda: tw.follower.epoch != epoch, "a new epoch")
        await tw.census()
        await tw.until(lambda: tw.follower.replicas[tw.project].epoch == tw.follower.epoch, "the new epoch is complete")
        await tw.shows(a, files=1)
        assert tw.started(a) == looks


async def test_a_dispatcher_that_starts_anew_and_a_worktree_that_is_made_anew_are_looked_at() -> None:
    async with deployed() as tw:
        a = tw.worktree("a")
        tw.worktree("stays")
        await tw.census()
        await tw.shows(a, files=0)
        tw.processes["dispatcher"].kill()
        tw.processes["dispatcher"].wait()
        write(tw.paths["a"], {"a.txt": "while nobody looked\n"})
        tw.start("dispatcher")
        await tw.shows(a, files=1)
        git(tw.repo, "worktree", "remove", "--force", tw.paths["a"])
        git(tw.repo, "branch", "-D", "a")
        tw.discover()
        await tw.census()
        await tw.until(lambda: tw.figure("worktrees") == 1, "it is gone")
        again = tw.worktree("a")
        assert again == a
        await tw.census()
        await tw.shows(a, files=0, branch="a")


async def test_a_session_or_a_relook_leads_to_a_look_where_nothing_is_watched() -> None:
    """With no budget for watches, what agents report is the hint, and the dispatcher says what it cannot see."""
    async with deployed(TREEWIRE_GIT__MAX_WATCHES="0") as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        write(tw.paths["a"], {"a.txt": "unseen\n"})
        await asyncio.sleep(0.5)
        assert tw.git(a)["files"] == 0
        now = now_ns()
        look = Look(tw.project, a, "session:s1", Session(state="working"), Stamp(now, now, CLOCK), "live")
        await tw.send(look)
        await tw.shows(a, files=1)
        assert any(event.why == "activity" for event in tw.events)


async def test_a_catalog_that_cannot_be_read_costs_nothing_that_is_known() -> None:
    async with deployed() as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        (tw.home / "treewire.db").rename(tw.home / "elsewhere.db")
        now = now_ns()
        await tw.send(Look(tw.project, a, "life", Life(name="renamed"), Stamp(now, now, CLOCK), "catalog"))
        await tw.until(lambda: "missing" in str(tw.figure("catalog")), "status tells")
        assert tw.beat("dispatcher").state == "degraded"
        write(tw.paths["a"], {"a.txt": "edited\n"})
        await tw.shows(a, files=1)
        (tw.home / "elsewhere.db").rename(tw.home / "treewire.db")
        await tw.until(lambda: tw.figure("catalog") == "ok", "it is read again")


async def test_both_processes_end_in_time_when_asked_even_in_the_middle_of_a_job() -> None:
    async with deployed(TREEWIRE_SUPERVISOR__DRAIN_S="1.5", TREEWIRE_GIT__DEADLINE_MS="60000") as tw:
        a = tw.worktree("a")
        await tw.census()
        await tw.shows(a, files=0)
        await tw.quiet()
        os.mkfifo(tw.paths["a"] / ".gitignore")
        await tw.until(lambda: busy(tw) is not None, "the worker hangs")
        children = git_children(tw.processes["worker-0"].pid)
        assert children
        for name in ("worker-0", "dispatcher"):
            tw.processes[name].send_signal(signal.SIGTERM)
            assert tw.processes[name].wait(6) == 0, tw.logs()
            del tw.processes[name]
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in children):
            assert time.monotonic() < deadline, "git outlives its worker"
            await asyncio.sleep(0.02)


def metric(tw: Deployment, name: str, **labels: str) -> float:
    """What the dispatcher's metrics say that it counted."""
    path = tw.run_dir / "dispatcher.prom"
    told = ",".join(f'{key}="{value}"' for key, value in labels.items())
    text = path.read_text() if path.exists() else ""
    found = re.search(rf"^treewire_{name}_total\{{{re.escape(told)}\}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found is not None else 0.0


def counted(tw: Deployment, outcome: str) -> bool:
    return metric(tw, "jobs", outcome=outcome) > 0


def busy(tw: Deployment) -> str | None:
    """The worker whose git does not come to an end."""
    for name, process in tw.processes.items():
        if name.startswith("worker") and process.poll() is None:
            children = git_children(process.pid)
            if any(blocked(pid) for pid in children):
                return name
    return None


def git_children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def blocked(pid: int) -> bool:
    """Whether the process waits in open(2) of a FIFO."""
    try:
        return (
            "fifo" in Path(f"/proc/{pid}/wchan").read_text()
            or "wait_for_partner" in Path(f"/proc/{pid}/wchan").read_text()
        )
    except OSError:
        return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
