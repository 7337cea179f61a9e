"""Hooks beside running sources: whose word of a session is shown, and what overrides it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline import catalog
from pipeline.catalog import Observed
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import LEASED, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources.claude import Claude as ClaudeSource
from pipeline.sources.deaths import started
from pipeline.sources.ladder import Rung
from pipeline.sources.processes import Processes
from tests import agents
from tests.sourcekit import Running, made, seen
from tests.world import Child, World, deployed, runs

SLEEPER = "import time; time.sleep(600)"
WAITS = Session(provider="claude", state="waiting", waiting_for="permission")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("pipeline.sources.desk.PLACES_S", 0.05)
    monkeypatch.setattr("pipeline.sources.desk.LAST_WORDS_S", 0.1)
    monkeypatch.setattr("pipeline.sources.processes.SWEEP_S", 0.05)
    (tmp_path / "home").mkdir(mode=0o700)
    return Settings.load(tmp_path / "home", {"sources.processes": False, "sources.tmux": False}, environ={})


def hook(
    running: Running, repo: Path, session: str = "s", *, age_ms: int = 0, producer: str = "hook", **fields: Any
) -> None:
    """What the gateway writes of a hook."""
    at = now_ns() - age_ms * 1_000_000
    fields = {"provider": "claude", "waiting_for": None, "crashed": False, **fields}
    project = next((one.id for one in running.catalog.projects() if one.path == str(repo)), repo.name)
    workspace = worktree_id(repo)
    group, wall = f"session:{session}", wall_ms() - age_ms
    event = Observed(project, workspace, group, fields, Stamp(at, at, CLOCK), wall, producer=producer)
    running.catalog.record([event])


def row(running: Running, session: str = "s") -> Session:
    """As the catalog has it, without what says nothing."""
    found = next((one.value for one in running.catalog.sessions() if one.id == session), Session())
    return found if found.crashed else replace(found, crashed=None)


@contextlib.contextmanager
def running_agent(repo: Path, *program: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, *program], cwd=repo) as agent:
        try:
            yield agent
        finally:
            agent.kill()


async def becomes(running: Running, expected: Session, session: str = "s") -> None:
    await running.until(lambda: row(running, session) == expected)


async def weighed(running: Running, session: str = "s") -> None:
    """What the hook said has been read back."""
    assert running.played.desk is not None
    ladder = running.played.desk.ladder
    await running.until(lambda: session in ladder.told())


def test_a_line_that_is_read_late_does_not_override_a_hook_that_came_after_it(settings, repo, monkeypatch) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            late = seen(repo, "idle", rung=Rung.TRANSCRIPT, model="opus")
            hook(running, repo, state="working")
            desk.saw("tail", [late])
            # The line's word counts for what the hook did not say.
            await becomes(running, Session(provider="claude", model="opus", state="working"))
            assert running.said[-1].producer == "hook"

    asyncio.run(journey())


def test_a_wait_that_a_hook_told_of_is_not_overridden_by_lines_of_an_agent_that_seems_to_work(
    settings, repo, monkeypatch
) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            desk.saw("tail", [seen(repo, "working", rung=Rung.TRANSCRIPT, provider="claude")])
            await running.until(running.sessions)
            hook(running, repo, state="waiting", waiting_for="permission")
            # Before the hook has been read back, and after it.
            desk.saw("tail", [seen(repo, "working", rung=Rung.TRANSCRIPT, provider="claude", model="opus")])
            await becomes(running, replace(WAITS, model="opus"))
            await weighed(running)
            desk.saw("tail", [seen(repo, "working", rung=Rung.TRANSCRIPT, provider="claude", model="sonnet")])
            await becomes(running, replace(WAITS, model="sonnet"))
            # That a turn has ended is certain; and the wait does not return.
            desk.saw("tail", [seen(repo, "idle", rung=Rung.TRANSCRIPT, provider="claude")])
            await becomes(running, Session(provider="claude", model="sonnet", state="idle"))
            desk.saw("tail", [seen(repo, "working", rung=Rung.TRANSCRIPT, provider="claude")])
            await becomes(running, Session(provider="claude", model="sonnet", state="working"))

    asyncio.run(journey())


def test_a_registry_entry_of_a_living_agent_wins_over_a_hook_from_before_it(settings, repo, monkeypatch) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            with running_agent(repo, "-c", SLEEPER) as agent:
                alive = {"pid": agent.pid, "started": started(agent.pid), "provider": "claude"}
                desk.saw("registry", [seen(repo, "working", **alive)])
                await becomes(running, Session(provider="claude", state="working"))
                hook(running, repo, state="waiting", waiting_for="permission")
                await weighed(running)
                assert row(running) == WAITS  # it happened after the entry was written
                desk.saw("registry", [seen(repo, "working", **alive)])  # the same again, but later
                await becomes(running, Session(provider="claude", state="working"))
                hook(running, repo, state="idle", age_ms=60_000)  # and came late
                desk.saw("registry", [seen(repo, "waiting", waiting_for="plan", **alive)])
                await becomes(running, Session(provider="claude", state="waiting", waiting_for="plan"))

    asyncio.run(journey())


@pytest.mark.parametrize("before", [False, True], ids=["while sources look", "while they do not"])
def test_a_death_overrides_what_a_hook_told_and_lines_too(settings, repo, monkeypatch, before) -> None:
    """S7: `exited`, and not `waiting` for ever."""

    async def journey() -> None:
        with running_agent(repo, "-c", SLEEPER) as agent:
            entry = {"pid": agent.pid, "started": started(agent.pid), "provider": "claude"}
            async with Running(settings, monkeypatch) as running:
                desk = await running.follow(repo)
                desk.saw("registry", [seen(repo, "working", **entry)])
                await becomes(running, Session(provider="claude", state="working"))
                monkeypatch.setattr("pipeline.sources.desk.PLACES_S", 60)
                await asyncio.sleep(0.1)
                hook(running, repo, state="waiting", waiting_for="permission")
                desk.saw("tail", [seen(repo, "working", rung=Rung.TRANSCRIPT)])
                if not before:
                    # At once: nobody has read the hook.
                    agent.kill()
                    agent.wait()
                    await becomes(running, Session(provider="claude", state="exited", crashed=True))
                    return
            agent.kill()
            agent.wait()
            monkeypatch.setattr("pipeline.sources.desk.PLACES_S", 0.05)
            async with Running(settings, monkeypatch) as running:
                desk = await running.follow(repo)
                desk.saw("registry", [seen(repo, "waiting", waiting_for="permission", **entry)])  # what was left
                await becomes(running, Session(provider="claude", state="exited", crashed=True))

    asyncio.run(journey())


def test_an_agent_of_which_only_hooks_tell_is_over_when_its_process_is(settings, repo, tmp_path, monkeypatch) -> None:
    script = tmp_path / "bin" / "gemini"
    script.parent.mkdir()
    script.write_text(SLEEPER)

    async def journey() -> None:
        async with Running(settings, monkeypatch, Processes()) as running:
            await running.follow(repo)
            with running_agent(repo, str(script)) as agent:
                alone = f"process-{agent.pid}"
                await running.until(lambda: any(look.group == f"session:{alone}" for look in running.said))
                hook(running, repo, "gemini-1", provider="gemini", state="waiting", waiting_for="permission")
                hook(running, repo, "gemini-elsewhere", provider="codex", state="idle")  # nobody saw its process
                await becomes(running, Session(provider="gemini", state="exited"), alone)  # one agent is not two
                await weighed(running, "gemini-1")
                await asyncio.sleep(0.2)
                waits = Session(provider="gemini", state="waiting", waiting_for="permission")
                assert row(running, "gemini-1") == waits
                agent.kill()
                agent.wait()
                await becomes(running, Session(provider="gemini", state="exited", crashed=True), "gemini-1")
            assert row(running, "gemini-elsewhere").state == "idle"

    asyncio.run(journey())


def test_an_entry_that_was_put_away_ends_the_session_and_a_file_that_is_gone_does_not(
    settings, repo, monkeypatch
) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            for session in ("a", "b"):
                rung = Rung.REGISTRY if session == "a" else Rung.TRANSCRIPT
                desk.saw("source", [seen(repo, "working", rung=rung, session=session)])
                await running.until(lambda s=session: s in {one.id for one in running.catalog.sessions()})
                hook(running, repo, session, state="idle")
                await weighed(running, session)
                desk.lost("source", session)
            await becomes(running, Session(provider="claude", state="exited"), "a")
            assert row(running, "b") == Session(provider="claude", state="idle")

    asyncio.run(journey())


def test_what_a_former_run_saw_and_a_hook_has_told_of_since_goes_on(settings, repo, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.sources.desk.GRACE_S", 0.5)

    async def before() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            both = [seen(repo, "working", session=session, provider="claude") for session in ("told", "left")]
            desk.saw("registry", both)
            await running.until(lambda: len(running.sessions()) == 2)

    async def after() -> None:
        async with Running(settings, monkeypatch) as running:
            await running.follow(repo)
            monkeypatch.setattr("pipeline.sources.desk.PLACES_S", 60)
            hook(running, repo, "told", state="waiting", waiting_for="permission")
            await becomes(running, Session(provider="claude", state="exited"), "left")
            assert row(running, "told") == WAITS

    asyncio.run(before())
    asyncio.run(after())


def test_what_others_told_of_an_archived_workspace_is_let_go(settings, repo, monkeypatch) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            hook(running, repo, state="working")
            await weighed(running)
            now = now_ns()
            running.catalog.archive_workspace(worktree_id(repo), Stamp(now, now, CLOCK), wall_ms())
            await running.until(lambda: "s" not in desk.ladder)

    asyncio.run(journey())


# ── a deployment ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


@pytest.mark.timeout(120)
def test_while_the_sources_are_dead_what_only_they_saw_is_unknown_and_what_hooks_told_stays(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = made(tmp_path)
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    store = catalog.open_url(world.settings.database_url)
    store.add_project(repo, wall_ms())
    store.close()
    agent = agents.Claude(tmp_path / "claude", repo, "one")
    children = [Child(world.settings, "sources"), Child(world.settings, "reconciler")]

    async def told(name: str, event: str, **more: Any) -> None:
        body = json.dumps({"session_id": name, "cwd": str(repo), "hook_event_name": event, **more}).encode()
        async with world.http.post(f"{world.url}v1/events/gemini", data=body, headers=world.bearer) as answer:
            assert answer.status in (202, 204)

    async def test(world: World) -> None:
        async with world.client() as client:

            def state(session: str) -> Any:
                found = client.state.get(worktree_id(repo), {}).get("sessions", {}).get(session, {})
                return found.get("state"), found.get("waiting_for")

            agent.status("waiting", "permission prompt")
            await client.until(lambda _: state("claude-one") == ("waiting", "permission"), 40)
            await told("two", "Notification", notification_type="ToolPermission")
            await client.until(lambda _: state("gemini-two") == ("waiting", "permission"))
            children[0].kill()
            began = time.monotonic()
            await client.until(lambda _: state("claude-one") == ("unknown", None), 40)
            assert time.monotonic() - began > 5  # not for a restart
            assert state("gemini-two") == ("waiting", "permission")
            children[0].start()
            await client.until(lambda _: state("claude-one") == ("waiting", "permission"))
            os.kill(agent.process.pid, signal.SIGKILL)
            await client.until(lambda _: state("claude-one") == ("exited", None))

    try:
        runs(world, test)
    finally:
        agent.kill()
        for child in children:
            child.end()


def test_the_sources_of_claude_and_hooks_of_claude_are_one_session(settings, repo, tmp_path, monkeypatch) -> None:
    async def journey() -> None:
        source = ClaudeSource({"CLAUDE_CONFIG_DIR": str(tmp_path / "claude")})
        async with Running(settings, monkeypatch, source) as running:
            await running.follow(repo)
            claude = agents.Claude(tmp_path / "claude", repo, "one", registry=False)
            try:
                claude.hear()
                claude.say("tool_use", "Bash")
                await running.until(running.sessions)
                hook(running, repo, "claude-one", state="waiting", waiting_for="permission")
                await weighed(running, "claude-one")
                claude.say("tool_use", "Bash")  # the next one of several at once
                await asyncio.sleep(0.3)
                held = row(running, "claude-one")
                assert (held.state, held.waiting_for, held.model) == ("waiting", "permission", "claude-opus-4-1")
                hook(running, repo, "claude-one", state="working")
                claude.say("end_turn")
                await running.until(lambda: row(running, "claude-one").state == "idle")
                assert [one.id for one in running.catalog.sessions()] == ["claude-one"]
                assert running.catalog.sessions()[0].producer.startswith(LEASED)
            finally:
                claude.leave()

    asyncio.run(journey())


def test_a_session_of_the_same_name_in_two_worktrees_that_scripts_tell_of_is_two_sessions(
    settings, repo, tmp_path, monkeypatch
) -> None:
    """Only the names that agents give are of the whole host."""

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            other = made(tmp_path / "other")
            desk = await running.follow(repo, other)
            for where in (repo, other):
                hook(running, where, "claude", producer="report", state="working")
            hook(running, repo, "claude-1", state="working")
            await weighed(running, "claude-1")  # and with it what was told before
            desk.saw("played", [seen(repo, "idle", session="later")])
            await becomes(running, Session(state="idle"), "later")  # and what was to be written before that is
            states = [one.value.state for one in running.catalog.sessions() if one.id == "claude"]
            assert states == ["working", "working"]

    asyncio.run(journey())
