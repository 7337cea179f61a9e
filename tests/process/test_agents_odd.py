"""Files of agents that are cut, replaced, late, huge, of another release or not what they seem: the rest goes on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.runtime.settings import Settings
from pipeline.sources.claude import Claude as ClaudeSource
from pipeline.sources.codex import Codex as CodexSource
from tests.agents import Claude, Codex
from tests.sourcekit import Running, made

Test = Callable[[Running], Awaitable[None]]


class Stage:
    """A followed worktree, the homes of both agents, and whoever plays."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repo, self.claude_home, self.codex_home = made(tmp_path), tmp_path / "claude", tmp_path / "codex"
        self.home, self._monkeypatch = tmp_path / "home", monkeypatch
        self.home.mkdir(mode=0o700)
        self.playing: list[Claude | Codex] = []

    def claude(self, session: str, *, registry: bool = True) -> Claude:
        self.playing.append(agent := Claude(self.claude_home, self.repo, session, registry=registry))
        return agent

    def codex(self, session: str) -> Codex:
        self.playing.append(agent := Codex(self.codex_home, self.repo, session))
        return agent

    def plays(self, test: Test) -> None:
        settings = Settings.load(self.home, {"sources.processes": False, "sources.tmux": False}, environ={})
        sources = [
            ClaudeSource({"CLAUDE_CONFIG_DIR": str(self.claude_home)}),
            CodexSource({"CODEX_HOME": str(self.codex_home)}),
        ]

        async def run() -> None:
            async with Running(settings, self._monkeypatch, *sources) as running:
                await running.follow(self.repo)
                await test(running)
                for source in sources:
                    assert source.health.state != "failing", source.health

        asyncio.run(run())


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    one = Stage(tmp_path, monkeypatch)
    yield one
    for agent in one.playing:
        if agent.process.poll() is None:
            agent.kill()


async def now(running: Running, session: str, **expected: Any) -> None:
    def found() -> bool:
        values = [look.value for look in running.said if look.group == f"session:{session}"]
        return bool(values) and all(getattr(values[-1], name) == value for name, value in expected.items())

    await running.until(found)


def known(running: Running) -> set[str]:
    return {look.group.removeprefix("session:") for look in running.said if look.group.startswith("session:")}


def test_homes_that_appear_later_are_found_and_those_that_are_made_anew_too(stage: Stage) -> None:
    async def test(running: Running) -> None:
        await asyncio.sleep(0.3)
        assert not stage.claude_home.exists()
        first = stage.claude("first")
        await now(running, "claude-first", state="idle")
        first.hear()
        first.status("busy")
        await now(running, "claude-first", state="working")
        shutil.rmtree(stage.claude_home)
        await now(running, "claude-first", state="exited", crashed=False)
        second = stage.claude("second")
        await now(running, "claude-second", state="idle")
        second.status("waiting", "plan approval")
        await now(running, "claude-second", state="waiting", waiting_for="plan")
        codex = stage.codex("late")
        await now(running, "codex-late", state="idle")
        codex.event("task_started")
        await now(running, "codex-late", state="working")

    stage.plays(test)


def test_an_entry_of_a_pid_that_was_given_to_another_process_says_nothing(stage: Stage) -> None:
    async def test(running: Running) -> None:
        stale = stage.claude("stale")
        entry = json.loads(stale.entry.read_text())
        entry |= {"procStart": str(int(entry["procStart"]) - 1), "status": "waiting", "sessionId": "other"}
        stale.entry.write_text(json.dumps(entry))
        stage.claude("fresh")
        await now(running, "claude-fresh", state="idle")
        await asyncio.sleep(0.2)
        assert "claude-other" not in known(running)

    stage.plays(test)


def test_a_session_of_the_sdk_has_its_state_from_its_transcript_and_its_end_from_its_process(stage: Stage) -> None:
    async def test(running: Running) -> None:
        agent = stage.claude("sdk")
        entry = json.loads(agent.entry.read_text())
        del entry["status"], entry["statusUpdatedAt"]
        agent.entry.write_text(json.dumps({**entry, "kind": "sdk", "name": "batch"}))
        agent.hear()
        await now(running, "claude-sdk", state="working", name="batch")
        agent.say("end_turn")
        await now(running, "claude-sdk", state="idle")
        agent.hear()
        await now(running, "claude-sdk", state="working")
        agent.kill()
        await now(running, "claude-sdk", state="exited", crashed=True)

    stage.plays(test)


def test_what_a_release_says_that_nobody_knows_is_there_and_unknown(stage: Stage) -> None:
    async def test(running: Running) -> None:
        agent = stage.claude("future")
        agent.status("contemplating")
        await now(running, "claude-future", state="unknown")
        agent.entry.write_text('{"version": 9, "process": {"id": 1}}')  # of another format: what was known stays
        codex = stage.codex("future")
        codex.event("turn_suspended")  # of a kind that nobody knows
        codex.event("task_started")
        await now(running, "codex-future", state="working")
        agent.status("busy")
        await now(running, "claude-future", state="working")

    stage.plays(test)


def test_half_a_line_is_taken_with_its_other_half_and_subagents_do_not_count(stage: Stage) -> None:
    async def test(running: Running) -> None:
        agent = stage.claude("one", registry=False)
        agent.hear()
        await now(running, "claude-one", state="working")
        agent.say("end_turn")
        whole = agent.transcript.read_bytes()
        last = whole.splitlines(keepends=True)[-1]
        await now(running, "claude-one", state="idle")
        with agent.transcript.open("ab") as file:
            file.write(last.replace(b'"isSidechain": false', b'"isSidechain": true').replace(b"end_turn", b"tool_use"))
            file.write(last.replace(b"end_turn", b"tool_use")[:40])
            file.flush()
            await asyncio.sleep(0.3)
            said = [look.value.state for look in running.said if look.group == "session:claude-one"]  # type: ignore[union-attr]
            assert said == ["working", "idle"]
            file.write(last.replace(b"end_turn", b"tool_use")[40:])
        await now(running, "claude-one", state="working")

    stage.plays(test)


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_transcript_that_is_cut_or_replaced_is_followed_on(stage: Stage, how: str) -> None:
    async def test(running: Running) -> None:
        agent = stage.claude("one", registry=False)
        for _ in range(20):
            agent.hear()
        await now(running, "claude-one", state="working")
        agent.say("end_turn")
        await now(running, "claude-one", state="idle")
        line = agent.transcript.read_bytes().splitlines(keepends=True)[0]
        if how == "cut":
            os.truncate(agent.transcript, 0)
        else:
            fresh = agent.transcript.with_suffix(".new")
            fresh.write_bytes(line)
            fresh.replace(agent.transcript)
        agent.say("tool_use", "AskUserQuestion")
        await now(running, "claude-one", state="waiting", waiting_for="question")

    stage.plays(test)


def test_a_transcript_of_a_gigabyte_is_known_by_its_tail(stage: Stage) -> None:
    async def test(running: Running) -> None:
        agent = stage.claude("huge", registry=False)
        agent.transcript.parent.mkdir(parents=True)
        with agent.transcript.open("wb") as file:
            file.truncate(1 << 30)
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        agent.say("end_turn")
        await now(running, "claude-huge", state="idle")

    stage.plays(test)


def test_packed_rollouts_and_whatever_is_no_file_of_the_users_are_passed_over(stage: Stage, tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        codex = stage.codex("plain")
        packed = codex.rollout.with_name("rollout-old.jsonl.zst")
        packed.write_bytes(codex.rollout.read_bytes().replace(b"plain", b"packed"))
        (codex.rollout.parent / "rollout-folder.jsonl").mkdir()
        os.mkfifo(codex.rollout.parent / "rollout-pipe.jsonl")
        secret = tmp_path / "elsewhere.jsonl"
        secret.write_bytes(codex.rollout.read_bytes().replace(b"plain", b"linked"))
        (codex.rollout.parent / "rollout-link.jsonl").symlink_to(secret)
        locked = codex.rollout.with_name("rollout-locked.jsonl")
        locked.write_bytes(codex.rollout.read_bytes().replace(b"plain", b"locked"))
        locked.chmod(0)
        claude = stage.claude("plain")
        sessions = claude.entry.parent
        os.mkfifo(sessions / "1.json")
        (sessions / "2.json").mkdir()
        (sessions / "3.json").symlink_to(claude.entry)
        (sessions / "4.json").write_bytes(b" " * 100_000)
        codex.event("task_started")
        await now(running, "codex-plain", state="working")
        claude.status("busy")
        await now(running, "claude-plain", state="working")
        readable = {"codex-locked"} if os.geteuid() == 0 else set()  # to root nothing is locked
        assert known(running) - readable == {"codex-plain", "claude-plain"}

    stage.plays(test)
