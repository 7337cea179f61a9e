"""Agents beside a whole deployment: what each does is on the board in a moment, with no hook and with hooks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Page

from benchmarks import deployment
from benchmarks.browser import CHROMIUM, chromium
from pipeline import catalog
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import LEASED
from pipeline.runtime.settings import Settings
from tests.agents import Claude, Codex

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("journeys"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host"),
]

TREES = 10
# What a loaded host may take. What it takes otherwise is in docs/benchmarks.md.
MOST_S, MEDIAN_S = 5.0, 1.0
SHOWN = "([id, words]) => document.querySelector(`.card[data-workspace=${id}] .status`)?.textContent.includes(words)"


class Watched(NamedTuple):
    """A deployment with a board before it, and an agent in each of its worktrees."""

    settings: Settings
    environment: dict[str, str]
    board: Page
    agents: list[Claude | Codex]

    def shows(self, agent: Claude | Codex, words: str, does: Callable[[], object]) -> float:
        """How long it takes from what the agent does to these words on its card, s."""
        began = time.perf_counter()
        does()
        self.board.wait_for_function(SHOWN, arg=[worktree_id(agent.worktree), words], timeout=60_000)
        return time.perf_counter() - began

    def producers(self) -> set[str]:
        """Who told last of each session."""
        store = catalog.open_url(self.settings.database_url)
        try:
            return {one.producer for one in store.sessions()}
        finally:
            store.close()


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    parent = Path(tempfile.mkdtemp(prefix="tw-repo-"))
    environment = {"CLAUDE_CONFIG_DIR": str(parent / "claude"), "CODEX_HOME": str(parent / "codex")}
    agents: list[Claude | Codex] = []
    try:
        repository = deployment.worktrees(parent, TREES, 3)
        with (
            deployment.home() as settings,
            deployment.deployment(settings, repository, **environment) as url,
            chromium() as browser,
        ):
            # What the page's policy forbids is what the test watches it with.
            board = browser.new_page(viewport={"width": 1280, "height": 1600}, bypass_csp=True)
            board.goto(f"{url}#token={settings.token_path.read_text().strip()}")
            board.wait_for_function(f"() => document.querySelectorAll('.card .open').length > {TREES}", timeout=60_000)
            for n in range(TREES):
                tree = parent / f"task-{n}"
                home = parent / ("codex" if n % 2 else "claude")
                agents.append(Codex(home, tree, f"c{n}") if n % 2 else Claude(home, tree, f"c{n}"))
            yield Watched(settings, environment, board, agents)
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                agent.kill()
        shutil.rmtree(parent, ignore_errors=True)


def test_whatever_ten_agents_do_is_on_the_board_in_a_moment_with_no_hook(watched: Watched) -> None:
    took = []
    for agent in watched.agents:
        watched.shows(agent, "idle", lambda: None)
    for agent in watched.agents:
        if isinstance(agent, Claude):
            took.append(watched.shows(agent, "working", lambda a=agent: a.status("busy")))
            took.append(watched.shows(agent, "give permission", lambda a=agent: a.status("waiting", "permission")))
            took.append(watched.shows(agent, "approve plan", lambda a=agent: a.status("waiting", "plan approval")))
            took.append(watched.shows(agent, "idle", lambda a=agent: a.status("idle")))
        else:
            took.append(watched.shows(agent, "working", lambda a=agent: a.event("task_started")))
            took.append(watched.shows(agent, "agent failed", lambda a=agent: a.event("error")))
            took.append(watched.shows(agent, "idle", lambda a=agent: a.event("turn_aborted")))
    assert all(producer.startswith(LEASED) for producer in watched.producers())
    assert len(took) == 35
    assert max(took) < MOST_S, took
    assert statistics.median(took) < MEDIAN_S, took


def test_an_agent_that_is_killed_while_it_waits_for_a_permission_does_not_wait_for_ever(watched: Watched) -> None:
    agent = watched.agents[0]
    assert isinstance(agent, Claude)
    watched.shows(agent, "give permission", lambda: agent.status("waiting", "permission prompt"))
    took = watched.shows(agent, "agent failed", lambda: os.kill(agent.process.pid, signal.SIGKILL))
    store = catalog.open_url(watched.settings.database_url)
    state = next(one.value for one in store.sessions() if one.id == "claude-c0")
    store.close()
    assert (state.state, state.waiting_for, state.crashed) == ("exited", None, True)
    assert took < MOST_S


def test_with_hooks_installed_the_board_follows_them_and_a_death_still_overrides_them(watched: Watched) -> None:
    environment = {**os.environ, **watched.environment}
    command = [sys.executable, "-m", "pipeline.cli", "hooks", "install", "claude", "--via", "command"]
    subprocess.run([*command, "--home", str(watched.settings.home)], env=environment, check=True, capture_output=True)
    settings = json.loads((Path(environment["CLAUDE_CONFIG_DIR"]) / "settings.json").read_text())
    agents = [agent for agent in watched.agents[1:] if isinstance(agent, Claude)]

    def tells(agent: Claude, event: str, **more: Any) -> None:
        """As Claude Code does: run the command, with the hook's JSON, and wait for its end."""
        hook = {"session_id": agent.session, "cwd": str(agent.worktree), "hook_event_name": event, **more}
        for entry in settings["hooks"][event]:
            for one in entry["hooks"]:
                subprocess.run(one["command"], shell=True, input=json.dumps(hook).encode(), env=environment, check=True)

    took, asks = [], {"tool_name": "Bash"}
    for agent in agents:
        took.append(watched.shows(agent, "working", lambda a=agent: tells(a, "UserPromptSubmit")))
        agent.hear()
        took.append(watched.shows(agent, "give permission", lambda a=agent: tells(a, "PermissionRequest", **asks)))
        agent.say("tool_use", "Bash")  # which is what such an agent has written
        took.append(watched.shows(agent, "working", lambda a=agent: tells(a, "PostToolUse", tool_name="Bash")))
        took.append(watched.shows(agent, "idle", lambda a=agent: tells(a, "Stop")))
    assert "hook" in watched.producers()
    assert max(took) < MOST_S, took
    assert statistics.median(took) < MEDIAN_S, took
    last = agents[-1]
    watched.shows(last, "give permission", lambda: tells(last, "PermissionRequest", **asks))
    assert watched.shows(last, "agent failed", lambda: os.kill(last.process.pid, signal.SIGKILL)) < MOST_S
