"""The sources process at a real bus and catalog: what agents do arrives, and what ends is told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import LEASED, Session
from pipeline.runtime.settings import Settings
from pipeline.sources import main as sources
from pipeline.sources.deaths import Deaths, started
from pipeline.sources.ladder import Rung
from pipeline.sources.processes import Table, provider
from pipeline.sources.tmux import Pane, panes
from tests.gitkit import git
from tests.sourcekit import Played, Running, made, seen

SLEEPER = "import time; time.sleep(600)"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir(mode=0o700)
    off = {"sources.processes": False, "sources.tmux": False}
    return Settings.load(tmp_path / "home", off, environ={})


def test_what_sources_see_of_a_session_is_one_row_and_leased(settings, repo, monkeypatch) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            desk.saw("tail", [seen(repo / "src", "working", rung=Rung.TRANSCRIPT, provider="claude", model="opus")])
            await running.heard(Session(provider="claude", model="opus", state="working"))
            desk.saw("registry", [seen(repo, "waiting", waiting_for="plan", name="one")])
            await running.heard(
                Session(provider="claude", name="one", model="opus", state="waiting", waiting_for="plan")
            )
            assert {look.source for look in running.said} == {"catalog"}
            assert running.said[-1].producer == f"{LEASED} registry"
            assert [one.value for one in running.catalog.sessions()] == [running.said[-1].value]
            await running.until(lambda: running.alive)

    asyncio.run(journey())


def test_a_session_outside_of_what_is_followed_is_told_once_its_worktree_is(
    settings, repo, tmp_path, monkeypatch
) -> None:
    other = Path(os.path.realpath(tmp_path)) / "code" / "fix"

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            desk.saw("registry", [seen(other, "working", provider="claude")])
            git(repo, "worktree", "add", "-q", "-b", "fix", other)
            await running.heard(Session(provider="claude", state="working"))
            assert running.said[-1].workspace == worktree_id(other)
            desk.saw("registry", [seen(repo, "working", provider="claude")])  # and goes to another one
            await running.until(lambda: running.said[-1].workspace == worktree_id(repo))
            states = {one.workspace: one.value.state for one in running.catalog.sessions()}
            assert states == {worktree_id(other): "exited", worktree_id(repo): "working"}

    asyncio.run(journey())


@pytest.mark.parametrize(("puts_away", "crashed"), [(False, True), (True, False)])
def test_an_agent_that_is_killed_while_it_waits_has_crashed_and_one_that_leaves_has_not(
    settings, repo, monkeypatch, puts_away, crashed
) -> None:
    """S6: process death overrides what the agent left behind."""

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            with subprocess.Popen([sys.executable, "-c", SLEEPER], cwd=repo) as agent:
                one = seen(repo, "waiting", waiting_for="permission", pid=agent.pid, started=started(agent.pid))
                desk.saw("registry", [one])
                await running.heard(Session(state="waiting", waiting_for="permission"))
                agent.send_signal(signal.SIGKILL)
                agent.wait()
                if puts_away:
                    desk.lost("registry", "s")
                await running.heard(Session(state="exited", crashed=crashed))
                desk.saw("registry", [one])  # found again in what it left
                await asyncio.sleep(0.2)
                assert running.sessions()[-1] == Session(state="exited", crashed=crashed)

    asyncio.run(journey())


def test_what_a_former_run_saw_and_nobody_sees_now_has_ended(settings, repo, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sources.desk.GRACE_S", 0.5)

    async def before() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            desk.saw("registry", [seen(repo, "working"), seen(repo, "idle", session="kept")])
            await running.until(lambda: len(running.sessions()) == 2)

    async def after() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            desk.saw("registry", [seen(repo, "idle", session="kept")])
            await running.until(lambda: Session(state="exited") in running.sessions())
            states = {one.id: one.value.state for one in running.catalog.sessions()}
            assert states == {"s": "exited", "kept": "idle"}

    asyncio.run(before())
    asyncio.run(after())


def test_a_source_that_fails_is_shown_and_run_again_and_the_others_go_on(settings, repo, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sources.desk.BACKOFF_S", (0.01, 0.05))
    monkeypatch.setattr(sources, "ALIVE_S", 0.05)

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            running.played.broken = True
            await running.until(lambda: running.played.runs > 2)
            shown = "failing: ValueError: a format nobody knows"
            await running.until(lambda: running.process.figures.get("source_played") == shown)
            desk.saw("registry", [seen(repo, "idle")])
            await running.heard(Session(state="idle"))

    asyncio.run(journey())


def test_what_a_source_saw_is_unknown_once_it_has_not_looked_for_too_long_and_known_again_once_it_has(
    settings, repo, monkeypatch
) -> None:
    """A source that hangs or fails leaves nobody working for ever, and takes no other along."""
    monkeypatch.setattr("pipeline.sources.desk.LEASE_S", 0.3)
    monkeypatch.setattr(sources, "ALIVE_S", 0.05)
    monkeypatch.setattr(Played, "cadence_s", 0.1)

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            running.played.looked()
            desk.saw("played lines", [seen(repo, "waiting", waiting_for="plan", session="lines")])
            desk.saw("other", [seen(repo, "working", session="kept")])
            await running.until(lambda: len(running.sessions()) == 2)
            await running.heard(Session(state="unknown"))
            assert desk.ladder.best("kept").fields.state == "working"
            assert running.process.figures["source_played_age_s"] >= 0.4
            assert running.process.figures["source_played_lease_s"] == 0
            running.played.looked()
            await running.heard(Session(state="waiting", waiting_for="plan"))

    asyncio.run(journey())


def test_what_an_agent_wrote_is_bounded_and_cannot_name_another_group(settings, repo, monkeypatch) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            for session in ("", "../x", "a b", "x" * 200, "\n"):
                desk.saw("registry", [seen(repo, "working", session=session)])
            desk.saw("registry", [seen(repo, "idle", name="\x1b[31m" + "n" * 1000)])
            await running.heard(Session(name=("[31m" + "n" * 1000)[:128], state="idle"))
            assert len(running.sessions()) == 1

    asyncio.run(journey())


def test_sessions_wait_for_a_catalog_that_is_away(settings, repo, monkeypatch) -> None:
    path = settings.home / "treewire.db"
    monkeypatch.setattr("pipeline.sources.desk.AGAIN_S", 0.05)

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            path.rename(path.with_suffix(".away"))
            desk.saw("registry", [seen(repo, "idle")])
            await asyncio.sleep(0.3)
            path.with_suffix(".away").rename(path)
            await running.heard(Session(state="idle"))

    asyncio.run(journey())


# ── deaths, processes, tmux ──────────────────────────────────────────────────────────────────────


def test_a_pid_that_was_given_anew_is_nobody_we_know() -> None:
    async def journey() -> None:
        deaths, told = Deaths(), []
        with subprocess.Popen([sys.executable, "-c", SLEEPER]) as child:
            start = started(child.pid)
            assert start is not None
            assert not deaths.watch(child.pid, start - 1, "s", lambda: told.append("wrong"))
            assert deaths.watch(child.pid, start, "s", lambda: told.append("first"))
            assert deaths.watch(child.pid, None, "s", lambda: told.append("again"))
            assert deaths.watch(child.pid, start, "t", lambda: told.append("other"))
            assert len(deaths) == 1
            child.kill()
            child.wait()
            while len(told) < 2:
                await asyncio.sleep(0.01)
            assert sorted(told) == ["again", "other"]
            assert started(child.pid) is None
            assert not deaths.watch(child.pid, start, "s", lambda: None)
        deaths.close()

    asyncio.run(asyncio.wait_for(journey(), 20))


@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("claude", ["claude"], "claude"),
        ("node", ["node", "/usr/lib/node_modules/.bin/gemini", "--yolo"], "gemini"),
        ("node", ["/usr/bin/node", "/x/codex.js"], "codex"),
        ("python3.12", ["/usr/bin/python3.12", "/x/aider"], "aider"),
        ("vim", ["vim", "claude"], None),
        ("node", ["node"], None),
        ("claude-x", ["claude-x"], None),
        ("", [], None),
        ("bash", ["bash", "-c", "claude"], None),
    ],
)
def test_an_agent_is_told_by_its_program_and_not_by_what_it_works_on(name, command, expected) -> None:
    assert provider(name, command) == expected


@pytest.fixture
def gemini(tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "gemini"
    script.parent.mkdir()
    script.write_text(SLEEPER)
    return script


def test_an_agent_of_which_only_the_process_is_seen_is_there_and_then_is_not(
    settings, repo, gemini, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.sources.processes.SWEEP_S", 0.05)
    from pipeline.sources.processes import Processes

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            source = Processes()
            work = asyncio.create_task(source.run(desk))
            with subprocess.Popen([sys.executable, str(gemini)], cwd=repo) as agent:
                await running.heard(Session(provider="gemini", state="unknown"))
                assert running.said[-1].group == f"session:process-{agent.pid}"
                agent.kill()
                agent.wait()
                await running.until(lambda: running.sessions()[-1].state == "exited")
            work.cancel()

    asyncio.run(journey())


def test_a_process_is_looked_at_once(monkeypatch) -> None:
    table, looked = Table(), []
    monkeypatch.setattr("pipeline.sources.processes._look", looked.append)
    table.sweep(set(psutil.pids()))
    first = len(looked)
    assert first > 0
    table.sweep(set(psutil.pids()))
    assert len(looked) - first < first  # only what has come meanwhile


def test_a_listing_of_panes_is_read_line_by_line_and_what_is_none_is_left_out() -> None:
    listing = "12\t1700000000\t/w/a\n\nx\t1\t/w\n13\t\t/w\n14\t5\trelative\n15\t6\t/with\ttab\n"
    assert panes(listing) == [Pane(12, 1700000000, "/w/a"), Pane(15, 6, "/with\ttab")]


def test_output_in_a_pane_of_a_worktree_is_activity_of_its_terminal(settings, repo, tmp_path, monkeypatch) -> None:
    import shutil
    import tempfile

    if shutil.which("tmux") is None:
        pytest.skip("no tmux on this host")
    from pipeline.sources import tmux as module

    monkeypatch.setattr(module, "EVERY_S", 0.1)
    monkeypatch.setattr(module, "NONE_S", 0.1)
    folder = tempfile.mkdtemp(prefix="tw-tmux-", dir="/tmp")  # a socket's path is short
    monkeypatch.setenv("TMUX_TMPDIR", folder)
    monkeypatch.delenv("TMUX", raising=False)

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            source = module.Tmux()
            work = asyncio.create_task(source.run(desk))
            await running.until(lambda: source.health.state == "idle")
            subprocess.run(["tmux", "-f", "/dev/null", "new-session", "-d", "-c", str(repo), "sleep 600"], check=True)
            try:
                await running.until(lambda: any(look.group == "terminal" for look in running.said))
                look = next(look for look in running.said if look.group == "terminal")
                assert look.workspace == worktree_id(repo)
                assert look.value.active is True
                assert source.health.state == "running"
            finally:
                subprocess.run(["tmux", "kill-server"], check=False)
            work.cancel()

    try:
        asyncio.run(journey())
    finally:
        shutil.rmtree(folder, ignore_errors=True)
