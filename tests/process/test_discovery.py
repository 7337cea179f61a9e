"""Discovery against real repositories, and the commands that say what to discover."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline import catalog as catalogs
from pipeline.bus import IngressServer
from pipeline.catalog import Project
from pipeline.catalog.ids import worktree_id
from pipeline.cli.project import project, workspace
from pipeline.domain.model import Look, Stamp
from pipeline.runtime.clock import CLOCK
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.sources import discovery
from pipeline.sources.discovery import Unreadable, find, repositories_in, repository_at
from pipeline.sources.main import main
from pipeline.sources.outbox import Outbox
from pipeline.sources.worktree_list import Listed, ListError, list_worktrees, parse
from pipeline.wire import decode_ingress

ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}


def git(where, *arguments):
    subprocess.run(["git", *map(os.fsencode, map(str, arguments))], cwd=where, env=ENV, check=True, capture_output=True)


def make(path: Path, *options) -> Path:
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main", *options)
    if "--bare" not in options:
        git(path, "commit", "-q", "--allow-empty", "-m", "first")
    return path


def of(path, base=""):
    return find(Project("p", "p", str(path), base, 0), 10)


@pytest.fixture
def repo(tmp_path):
    return make(tmp_path / "code" / "web")


@pytest.fixture
def settings():
    # A short path: sockets live below it.
    with tempfile.TemporaryDirectory(prefix="tw-") as home:
        overrides = {"sources.discover_s": 600, "reconciler.poll_ms": 50}
        yield Settings.load(Path(home).resolve() / "home", overrides, environ={"HOME": home})


# ── reading one repository ───────────────────────────────────────────────────────────────────────


def test_the_output_of_git_becomes_records():
    output = (
        b"worktree /a\0HEAD 11\0branch refs/heads/x/y\0\0"
        b"worktree /b \n\xe9\0HEAD 22\0detached\0locked why not\0future thing\0\0"
        b"worktree /c\0bare\0\0worktree /d\0HEAD 33\0detached\0prunable gone\0\0"
    )
    assert parse(output) == [
        Listed("/a", "11", "x/y"),
        Listed(os.fsdecode(b"/b \n\xe9"), "22", detached=True, locked=True),
        Listed("/c", bare=True),
        Listed("/d", "33", detached=True, prunable=True),
    ]
    assert parse(b"") == []


def test_every_worktree_of_a_repository_is_found_wherever_it_lies(repo, tmp_path):
    git(repo, "worktree", "add", "-q", "-b", "fix", tmp_path / "far" / "fix")
    git(repo, "worktree", "add", "-q", "--detach", repo / "inside")
    found = of(repo)
    by_name = {Path(w.path).name: w for w in found.worktrees}
    assert {name: (w.branch, w.base) for name, w in by_name.items()} == {
        "web": ("main", "main"),
        "fix": ("fix", "main"),
        "inside": ("", "main"),
    }
    assert by_name["fix"].git_dir == str(repo / ".git/worktrees/fix")
    assert {w.common_dir for w in found.worktrees} == {str(repo / ".git")}
    assert found.stamp.began < found.stamp.ended
    assert of(repo, "dev").worktrees[0].base == "dev"


def test_a_bare_repository_has_no_worktree_of_its_own(tmp_path):
    bare = make(tmp_path / "web.git", "--bare")
    assert of(bare).worktrees == []
    seed = make(tmp_path / "seed")
    git(seed, "push", "-q", bare, "main")
    git(bare, "worktree", "add", "-q", tmp_path / "one", "main")
    assert [w.path for w in of(bare).worktrees] == [str(tmp_path / "one")]
    assert repository_at(tmp_path / "one").path == bare


def test_names_that_are_no_utf8_and_hold_newlines_are_found(repo, tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9\nnew")
    git(repo, "worktree", "add", "-q", "-b", "odd", path)
    assert of(repo).worktrees[1].path == path


def test_a_worktree_that_was_deleted_is_gone_and_one_that_cannot_be_told_is_neither(repo, tmp_path):
    for name in ("deleted", "hijacked"):
        git(repo, "worktree", "add", "-q", "-b", name, tmp_path / name)
    git(repo, "worktree", "lock", tmp_path / "deleted")
    shutil.rmtree(tmp_path / "deleted")
    other = make(tmp_path / "other")
    (tmp_path / "hijacked" / ".git").write_text(f"gitdir: {other}/.git\n")
    found = of(repo)
    assert [Path(w.path).name for w in found.worktrees] == ["web"]
    assert list(found.unsure) == [str(tmp_path / "hijacked")]
    assert "another repository" in found.unsure[str(tmp_path / "hijacked")]


def test_a_path_that_is_no_repository_any_more_concludes_nothing(repo):
    shutil.rmtree(repo / ".git")
    with pytest.raises(Unreadable, match="no git repository any more"):
        of(repo)


def test_listing_runs_no_program_that_the_repository_configures(repo, tmp_path):
    canary = tmp_path / "canary"
    script = tmp_path / "run"
    script.write_text(f"#!/bin/sh\ntouch {canary}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "core.sshCommand", "core.pager", "alias.worktree", "core.hooksPath", "core.editor"):
        git(repo, "config", key, script)
    assert len(of(repo).worktrees) == 1
    assert not canary.exists()


def test_a_git_that_hangs_is_killed_with_its_group_at_the_deadline(repo, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/pid; wait\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(ListError, match="within 1 s"):
        list_worktrees(repo / ".git", 1)
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < until, "the child of git outlived it"
        time.sleep(0.01)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_endless_list_is_cut_off(repo, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text("#!/bin/sh\nexec cat /dev/zero\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(ListError, match="more worktrees than can be"):
        list_worktrees(repo / ".git", 30)


def test_git_says_itself_why_it_cannot_list(tmp_path):
    with pytest.raises(ListError, match="not a git repository"):
        list_worktrees(tmp_path, 10)


def test_a_folder_of_repositories_is_each_of_them_once(repo, tmp_path):
    make(tmp_path / "code" / "api")
    git(repo, "worktree", "add", "-q", "-b", "fix", tmp_path / "code" / "web-fix")
    (tmp_path / "code" / "notes").mkdir()
    found = repositories_in(tmp_path / "code")
    assert {repository.path.name for repository in found} == {"web", "api"}
    assert [repository.path for repository in repositories_in(tmp_path / "code" / "web-fix")] == [repo]


# ── the sources process ──────────────────────────────────────────────────────────────────────────


class Running:
    """The sources process's main in this loop, and what it says on the bus."""

    def __init__(self, settings):
        settings.run_dir.mkdir(parents=True, mode=0o700)
        self.process = Process("sources", settings)
        self.catalog = catalogs.open(settings)
        self.said = []
        self.server = None
        self.task = None

    async def __aenter__(self):
        self.server = IngressServer(self.process.settings.run_dir, self._take)
        self.task = asyncio.create_task(main(self.process))
        return self

    def _take(self, batch):
        for frames in batch:
            look = decode_ingress(frames[-1])
            if not isinstance(look, Look):
                continue
            self.said.append((look.workspace, look.value.phase, look.value.branch))

    async def __aexit__(self, *_):
        self.process.stopping.set()
        await asyncio.wait_for(self.task, 20)
        self.server.close()
        self.catalog.close()
        self.process.close()
        assert not self.process.failed

    async def until(self, condition):
        deadline = asyncio.get_running_loop().time() + 30
        while not condition():
            assert not self.task.done(), self.task.result()
            assert asyncio.get_running_loop().time() < deadline, (self.said, dict(self.process.figures))
            await asyncio.sleep(0.02)

    async def heard(self, *expected):
        await self.until(lambda: expected in self.said)


def test_worktrees_that_come_switch_and_go_are_told_without_waiting_for_the_cadence(settings, repo, tmp_path):
    """The cadence is set far beyond the test: what is seen is seen by the watch."""
    fix = tmp_path / "code" / "fix"

    async def journey():
        async with Running(settings) as running:
            running.catalog.add_project(repo, 1)
            await running.heard(worktree_id(repo), "ready", "main")
            git(repo, "worktree", "add", "-q", "-b", "fix", fix)
            await running.heard(worktree_id(fix), "ready", "fix")
            await running.until(lambda: running.process.figures.get("worktrees") == 2)
            git(fix, "switch", "-q", "-c", "topic")
            await running.heard(worktree_id(fix), "ready", "topic")
            git(repo, "switch", "-q", "-c", "dev")
            await running.heard(worktree_id(repo), "ready", "dev")
            shutil.rmtree(fix)
            await running.heard(worktree_id(fix), "archived", "topic")
            git(repo, "worktree", "prune")
            git(repo, "worktree", "add", "-q", fix, "fix")
            await running.until(lambda: running.said[-1] == (worktree_id(fix), "ready", "fix"))
            assert running.catalog.workspace(worktree_id(fix)).incarnation == 2

    asyncio.run(journey())


def test_a_repository_that_goes_away_keeps_what_was_known_and_is_shown_as_failing(settings, repo):
    quick = Settings.load(settings.home, {"sources.discover_s": 0.2, "reconciler.poll_ms": 50}, environ={})

    async def journey():
        async with Running(quick) as running:
            running.catalog.add_project(repo, 1)
            await running.heard(worktree_id(repo), "ready", "main")
            repo.rename(repo.with_name("away"))
            await running.until(lambda: running.process.figures["projects_failing"] == 1)
            assert [w.phase for w in running.catalog.workspaces()] == ["ready"]
            repo.with_name("away").rename(repo)
            await running.until(lambda: running.process.figures["projects_failing"] == 0)
            assert all(phase == "ready" for _, phase, _ in running.said)

    asyncio.run(journey())


def test_a_database_that_is_away_is_waited_for(settings, repo):
    path = settings.home / "treewire.db"

    async def journey():
        async with Running(settings) as running:
            await running.until(lambda: running.process.figures.get("database") == "same")
            path.rename(path.with_suffix(".away"))
            await running.until(lambda: running.process.figures["database"] == "missing")
            path.with_suffix(".away").rename(path)
            running.catalog.add_project(repo, 1)
            await running.heard(worktree_id(repo), "ready", "main")

    asyncio.run(journey())


def test_a_project_that_is_removed_while_it_is_looked_at_leaves_no_complaint(settings, repo, monkeypatch):
    """O1: else the process would call itself degraded, for a repository that nobody follows, until it is restarted."""
    began, goes_on = threading.Event(), threading.Event()

    def slow(*_):
        began.set()
        goes_on.wait(20)
        raise Unreadable("it is gone")

    async def journey():
        settings.run_dir.mkdir(parents=True, mode=0o700)
        process, catalog = Process("sources", settings), catalogs.open(settings)
        one = discovery.Discovery(process, catalog, lambda looks: None)
        try:
            monkeypatch.setattr(discovery, "find", slow)
            project = catalog.add_project(repo, 1).project
            await one.reload()
            await asyncio.to_thread(began.wait, 20)
            catalog.remove_project(project.id, Stamp(1, 1, CLOCK), 1)
            await one.reload()
            goes_on.set()
            async with asyncio.timeout(20):
                while process._tasks:
                    await asyncio.sleep(0.01)
            assert (process.state, process.figures["projects_failing"]) == ("running", 0)
            catalog.add_project(repo, 1)
            await one.reload()
            async with asyncio.timeout(20):
                while process.state != "degraded":
                    await asyncio.sleep(0.01)
            catalog.remove_project(project.id, Stamp(2, 2, CLOCK), 2)
            await one.reload()
            assert (process.state, process.figures["reason"]) == ("running", "")
        finally:
            one.close()
            catalog.close()
            process.close()

    asyncio.run(journey())


def test_the_process_ends_cleanly_on_a_signal(settings, repo):
    code = (
        "import sys; from pathlib import Path; from pipeline.runtime.process import run; from pipeline.sources.main "
        "import main; from pipeline.runtime.settings import Settings; run('sources', main, "
        "Settings.load(Path(sys.argv[1])))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(settings.home)], stderr=subprocess.PIPE, text=True)
    catalog = catalogs.open(settings)
    try:
        catalog.add_project(repo, 1)
        until = time.monotonic() + 30
        while not catalog.workspaces():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, complaint = child.communicate(timeout=20)
        assert child.returncode == 0, complaint
    finally:
        child.kill()
        child.communicate()
        catalog.close()


def test_looks_wait_for_a_bus_that_is_full_and_only_the_newest_of_a_group_does(settings, repo):
    async def journey():
        taken, full = [], True

        def send(look):
            if full:
                return False
            taken.append(look)
            return True

        outbox = Outbox(send)
        task = asyncio.create_task(outbox.run())
        found = of(repo).worktrees[0]
        catalog = catalogs.open(settings)
        catalog.add_project(repo, 1)
        first = catalog.upsert_worktrees("web", [found], of(repo).stamp, 1)
        git(repo, "switch", "-q", "-c", "dev")
        second = catalog.upsert_worktrees("web", of(repo).worktrees, of(repo).stamp, 1)
        catalog.close()
        outbox.put(first)
        outbox.put(second)
        assert len(outbox) == 1
        full = False
        async with asyncio.timeout(30):
            while not taken:
                await asyncio.sleep(0.01)
        assert taken == second
        assert len(outbox) == 0
        task.cancel()

    asyncio.run(journey())


# ── the commands ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def treewire(settings):
    def run(group, *arguments, code=0, **options):
        result = CliRunner().invoke(group, [str(a) for a in arguments], obj=settings, **options)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    return run


def test_a_project_is_added_listed_and_removed_without_any_deployment(treewire, repo, tmp_path):
    git(repo, "worktree", "add", "-q", "-b", "fix", tmp_path / "fix")
    assert "No projects yet" in treewire(project, "list")
    assert treewire(project, "add", repo) == f"Added web ({repo}), 2 worktrees.\n"
    assert "Already there: web" in treewire(project, "add", tmp_path / "fix")
    [row] = json.loads(treewire(project, "list", "--json"))
    assert (row["id"], row["path"], row["workspaces"]) == ("web", str(repo), 2)
    assert "WORKSPACES" in treewire(project, "list")
    assert treewire(project, "remove", repo, code=1, input="n\n").endswith("Aborted!\n")
    assert "Removed web with 2 workspaces" in treewire(project, "remove", repo, "--yes")
    assert json.loads(treewire(project, "list", "--json")) == []


def test_a_folder_of_repositories_is_added_at_once(treewire, repo, tmp_path):
    make(tmp_path / "code" / "api")
    rows = json.loads(treewire(project, "add", tmp_path / "code", "--json"))
    assert [(row["id"], row["new"], row["worktrees"]) for row in rows] == [("api", True, 1), ("web", True, 1)]
    assert "can name only one" in treewire(project, "add", tmp_path / "code", "--name", "x", code=2)


def test_what_cannot_be_added_or_removed_is_said_with_what_to_do(treewire, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "There is no" in treewire(project, "add", tmp_path / "nowhere", code=1)
    assert "is not a folder" in treewire(project, "add", tmp_path / "file", code=1)
    assert "git init" in treewire(project, "add", tmp_path / "empty", code=1)
    assert "treewire project list" in treewire(project, "remove", "nothing", "--yes", code=1)
    assert "treewire workspace list" in treewire(workspace, "archive", "nothing", code=1)
    assert "treewire project list" in treewire(workspace, "list", "--project", "nothing", code=1)


def test_workspaces_are_listed_and_archived_by_id_or_path(treewire, repo, tmp_path):
    assert "No workspaces" in treewire(workspace, "list")
    git(repo, "worktree", "add", "-q", "-b", "fix", tmp_path / "fix")
    treewire(project, "add", repo)
    assert worktree_id(repo) in treewire(workspace, "list", "--project", "web")
    assert treewire(workspace, "archive", tmp_path / "fix") == f"Archived {worktree_id(tmp_path / 'fix')}.\n"
    assert "archived already" in treewire(workspace, "archive", worktree_id(tmp_path / "fix"))
    assert [w["id"] for w in json.loads(treewire(workspace, "list", "--json"))] == [worktree_id(repo)]
    assert len(json.loads(treewire(workspace, "list", "--archived", "--json"))) == 2


def test_a_broken_database_is_one_sentence_and_no_traceback(treewire, settings):
    settings.home.mkdir(parents=True)
    (settings.home / "treewire.db").write_bytes(b"x" * 8192)
    assert "is not a database" in treewire(project, "list", code=1)
