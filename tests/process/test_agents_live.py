"""Agents that write as Claude Code and Codex do, and no hook: what they do is told, and so is their end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.settings import Settings
from pipeline.sources.agents import SETTLED_NS
from pipeline.sources.claude import Claude as ClaudeSource
from pipeline.sources.codex import Codex as CodexSource
from pipeline.sources.processes import Processes
from tests import agents
from tests.gitkit import git
from tests.sourcekit import Running, made


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr("pipeline.sources.processes.SWEEP_S", 0.1)
    monkeypatch.setattr("pipeline.sources.agents.LOOSE_S", 0.1)
    monkeypatch.setattr("pipeline.sources.agents.SETTLED_NS", 300_000_000)
    (tmp_path / "home").mkdir(mode=0o700)
    return Settings.load(tmp_path / "home", {}, environ={})


@pytest.fixture
def playing(tmp_path: Path) -> Iterator[list[agents.Agent]]:
    """Those that still play when the test is over are ended."""
    played: list[agents.Agent] = []
    yield played
    for one in played:
        if one.process.poll() is None:
            one.kill()


def sources(tmp_path: Path) -> list[Any]:
    return [
        ClaudeSource({"CLAUDE_CONFIG_DIR": str(tmp_path / "claude")}),
        CodexSource({"CODEX_HOME": str(tmp_path / "codex")}),
        Processes(),
    ]


def of(running: Running, group: str) -> list[Any]:
    return [look.value for look in running.said if look.group == group]


async def now(running: Running, group: str, **expected: Any) -> None:
    def found() -> bool:
        values = of(running, group)
        return bool(values) and all(getattr(values[-1], name) == value for name, value in expected.items())

    await running.until(found)


def test_claude_is_followed_by_its_registry_and_its_death_overrides_it(
    settings,
    repo,
    tmp_path,
    monkeypatch,
    playing,
) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            claude = agents.Claude(tmp_path / "claude", repo, "one")
            playing.append(claude)
            group = "session:claude-one"
            await now(running, group, state="idle", provider="claude")
            claude.status("busy")
            claude.hear()
            claude.say(None)
            await now(running, group, state="working", model="claude-opus-4-1")
            claude.status("waiting", "permission prompt")
            await now(running, group, state="waiting", waiting_for="permission")
            claude.say("end_turn")  # the registry knows better
            claude.kill()
            await now(running, group, state="exited", crashed=True, waiting_for=None)

    asyncio.run(journey())


def test_a_claude_without_a_registry_is_followed_by_its_transcript_and_ends_with_its_process(
    settings,
    repo,
    tmp_path,
    monkeypatch,
    playing,
) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            claude = agents.Claude(tmp_path / "claude", repo, "old", registry=False)
            playing.append(claude)
            group = "session:claude-old"
            claude.hear()
            await now(running, group, state="working")
            claude.say("tool_use", "ExitPlanMode")
            await now(running, group, state="waiting", waiting_for="plan")
            claude.hear()
            claude.say("end_turn")
            await now(running, group, state="idle")
            claude.leave()
            await now(running, group, state="exited")

    asyncio.run(journey())


def test_an_agent_that_leaves_puts_its_entry_away_and_has_not_crashed(
    settings,
    repo,
    tmp_path,
    monkeypatch,
    playing,
) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            claude = agents.Claude(tmp_path / "claude", repo, "one")
            playing.append(claude)
            claude.status("busy")
            claude.say(None)
            await now(running, "session:claude-one", state="working")
            claude.leave()
            await now(running, "session:claude-one", state="exited", crashed=False)

    asyncio.run(journey())


def test_codex_is_followed_by_its_rollout(settings, repo, tmp_path, monkeypatch, playing) -> None:
    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            codex = agents.Codex(tmp_path / "codex", repo, "two")
            playing.append(codex)
            group = "session:codex-two"
            await now(running, group, state="idle", provider="codex", model="gpt-5-codex")
            codex.event("task_started")
            await now(running, group, state="working")
            codex.event("turn_aborted")
            await now(running, group, state="idle")
            codex.event("turn_started")
            codex.kill()
            await now(running, group, state="exited")

    asyncio.run(journey())


def test_what_was_over_before_is_not_told_and_what_is_elsewhere_neither(
    settings,
    repo,
    tmp_path,
    monkeypatch,
    playing,
) -> None:
    # However slow the host is, the one that is here shall not be taken for one that was over before.
    monkeypatch.setattr("pipeline.sources.agents.SETTLED_NS", SETTLED_NS)
    elsewhere = Path(os.path.realpath(tmp_path)) / "elsewhere"
    elsewhere.mkdir()
    over = agents.Claude(tmp_path / "claude", repo, "over", registry=False)
    over.ago_s = 60
    over.say("end_turn")
    over.leave()
    killed = agents.Claude(tmp_path / "claude", repo, "killed")
    killed.status("waiting", "permission prompt")
    killed.kill()  # and its entry stays behind
    other = agents.Claude(tmp_path / "claude", elsewhere, "other")
    other.hear()
    playing.append(other)

    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            here = agents.Claude(tmp_path / "claude", repo, "here")
            playing.append(here)
            await now(running, "session:claude-here", state="idle")
            here.status("busy")
            await now(running, "session:claude-here", state="working")
            assert {look.group for look in running.said if look.group.startswith("session:")} == {"session:claude-here"}

    asyncio.run(journey())


def test_ten_agents_in_ten_worktrees_are_told_apart(settings, repo, tmp_path, monkeypatch, playing) -> None:
    # Nobody ends here: however slow the host is, none of them shall be taken for one that was over before.
    monkeypatch.setattr("pipeline.sources.agents.SETTLED_NS", SETTLED_NS)
    trees = []
    for n in range(10):
        trees.append(repo.parent / f"task-{n}")
        git(repo, "worktree", "add", "-q", "-b", f"task-{n}", trees[-1])

    async def journey() -> None:
        async with Running(settings, monkeypatch, *sources(tmp_path)) as running:
            await running.follow(repo)
            for n, tree in enumerate(trees):
                agent = (
                    agents.Claude(tmp_path / "claude", tree, f"c{n}")
                    if n % 2
                    else agents.Codex(tmp_path / "codex", tree, f"c{n}")
                )
                playing.append(agent)
            for n, agent in enumerate(playing):
                group = f"session:{agent.provider}-c{n}"
                await now(running, group, state="idle")
                if isinstance(agent, agents.Claude):
                    agent.status("busy")
                else:
                    assert isinstance(agent, agents.Codex)
                    agent.event("task_started")
                await now(running, group, state="working")
            homes = {look.group: look.workspace for look in running.said if look.group.startswith("session:")}
            assert len(set(homes.values())) == 10

    asyncio.run(journey())
