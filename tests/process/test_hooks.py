"""Hooks of agents against a real deployment: what shows, what is never let in, and who is never kept waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline import catalog
from pipeline.bridges import hooks
from pipeline.runtime.clock import wall_ms
from tests.access import bearer, created
from tests.world import Child, World, deployed, environment, free_ports, runs

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hooks"
CANARY = b"CANARY-7f3a"
IDLE = {agent: {"hook_event_name": "AfterAgent" if agent == "gemini" else "Stop"} for agent in hooks.AGENTS}
WELL = (202, 204)


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


async def _followed(world: World, *projects: str) -> Path:
    """Projects with two workspaces each, named by folders in the first path component below the project."""
    home = world.settings.home
    lives = []
    store = await asyncio.to_thread(catalog.open_url, world.settings.database_url)
    for project in projects or ("web",):
        for name in ("w1", "w2"):
            folder = home / project / name / "src"
            folder.mkdir(parents=True)
            life = {"name": name, "path": str(folder.parent)}
            lives.append({"project": project, "workspace": f"{project}-{name}", "group": "life", "fields": life})
        await asyncio.to_thread(store.add_project, home / project, wall_ms())
    store.close()
    await world.ready(projects=list(projects or ("web",)))
    assert (await world.post(lives))[0] == 202
    return home


async def _post(world: World, agent: str, hook: Any, query: str = "", at: str = "", **headers: str) -> int:
    """Its status; the answer is empty where all is well. `at`: the gateway, if there are several."""
    body = hook if isinstance(hook, bytes) else json.dumps(hook).encode()
    url = f"{at or world.url}v1/events/{agent}{query}"
    async with world.http.post(url, data=body, headers={**world.bearer, **headers}) as answer:
        told = await answer.read()
        assert (told == b"") == (answer.status < 300), told
        assert CANARY not in told
        return answer.status


def _hook(name: str, cwd: Path | str, session: str = "s1", **more: Any) -> dict[str, Any]:
    return {"session_id": session, "cwd": str(cwd), "hook_event_name": name, **more}


def _state(client: Any, workspace: str, session: str = "claude-s1") -> Any:
    found = client.state.get(workspace, {}).get("sessions", {}).get(session, {})
    return found.get("state"), found.get("waiting_for")


async def _settled(world: World, hooks: int) -> None:
    """So many hooks have been counted, each by what became of it."""

    async def counted() -> bool:
        return world.metric((await world.get("metrics"))[2], "treewire_hooks_total") >= hooks

    await world.until(counted, f"{hooks} hooks")


async def _count(world: World, outcome: str) -> float:
    text = (await world.get("metrics"))[2].decode()
    lines = [line for line in text.splitlines() if line.startswith("treewire_hooks_total")]
    return sum(float(line.split()[-1]) for line in lines if f'outcome="{outcome}"' in line)


def test_every_hook_of_every_agent_shows_on_every_screen_and_no_word_of_the_work_gets_in(world: World) -> None:
    """W8: prompts, tool inputs, results and messages stay out of the catalog, the bus, the frames and the logs."""

    async def test(world: World) -> None:
        home = await _followed(world)
        record = home / "recording"
        tap = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "tap", "--record", str(record), "--home", str(home)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(),
        )  # fmt: skip
        try:
            async with world.client() as client:
                await client.until(lambda c: "web-w1" in c.state)
                await world.until(lambda: _recorded(world, record), "the recording")
                for agent in hooks.AGENTS:
                    for line in (FIXTURES / f"{agent}.jsonl").read_text().splitlines():
                        case = json.loads(line)
                        hook = json.loads(json.dumps(case["hook"]).replace("/srv/web", str(home / "web" / "w1")))
                        session = f"{agent}-{hook.get('session_id') or hook['thread-id']}"
                        if case["says"] and case["says"].get("state") == "working":
                            # Nothing waits, which it might leave as it is, and nothing works already.
                            await _post(world, agent, {**hook, **IDLE[agent]})
                            await client.until(lambda c, s=session: _state(c, "web-w1", s) == ("idle", None))
                        assert await _post(world, agent, hook) in WELL, hook
                        if case["says"] and "state" in case["says"]:
                            says = (case["says"]["state"], case["says"]["waiting_for"])
                            still = hook.get("hook_event_name") == "Notification"
                            if not (still and says[0] == "waiting"):
                                await client.until(lambda c, s=session, w=says: _state(c, "web-w1", s) == w)
                sessions = client.state["web-w1"]["sessions"]
                assert {one["provider"] for one in sessions.values()} == set(hooks.AGENTS)
                assert {one.get("model") for one in sessions.values()} == {"claude-opus-4-6", "gpt-5-codex", None}
                await world.until(lambda: b'"gemini-' in record.read_bytes(), "the last session in the recording")
                for bad in (b"CANARY-7f3a", b'{"hook_event_name": "Stop", "session_id": "CANARY-7f3a", "cwd": "x"}'):
                    assert await _post(world, "claude", bad) == 400
                seen = json.dumps(client.frames).encode() + (await world.get("metrics"))[2]
                seen += (await world.get("v1/projects/web/workspaces/web-w1/explain"))[2]
        finally:
            tap.terminate()
            await asyncio.to_thread(tap.wait, 10)
        files = [path for path in home.rglob("*") if path.is_file()]
        assert {"treewire.db", "recording", "gateway.out", "aggregator.out"} <= {path.name for path in files}
        assert b"gpt-5-codex" in record.read_bytes()  # it would be found
        for path in files:
            assert CANARY not in path.read_bytes(), path
        assert CANARY not in seen

    runs(world, test)


async def _recorded(world: World, record: Path) -> bool:
    """What is sent now is recorded: whoever listens has to be connected first."""
    await world.git("web-w1", 3)
    return record.exists() and b'"insertions":3' in record.read_bytes()


def test_a_notification_does_not_hide_what_is_waited_for(world: World) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd = home / "web" / "w1" / "src"
        async with world.client() as client:
            await _post(world, "claude", _hook("PermissionRequest", cwd, tool_name="ExitPlanMode"))
            await _post(world, "claude", _hook("Notification", cwd, notification_type="permission_prompt"))
            await _settled(world, 2)
            await client.until(lambda c: _state(c, "web-w1") == ("waiting", "plan"))
            # Where nobody told for what, the notification is all there is.
            await _post(world, "claude", _hook("PostToolUse", cwd))
            await client.until(lambda c: _state(c, "web-w1") == ("working", None))
            await _post(world, "claude", _hook("Notification", cwd, notification_type="permission_prompt"))
            await client.until(lambda c: _state(c, "web-w1") == ("waiting", "permission"))
            # A hook that was long on its way is judged by when it happened.
            await _post(world, "claude", _hook("PostToolUse", cwd), "?age_ms=60000")
            await _post(world, "claude", _hook("SessionStart", cwd, session="s2"))
            await client.until(lambda c: _state(c, "web-w1", "claude-s2") == ("idle", None))
            assert _state(client, "web-w1") == ("waiting", "permission")
            assert await _post(world, "claude", _hook("Stop", cwd), "?age_ms=soon") == 400

    runs(world, test)


def test_a_wait_is_not_hidden_by_subagents_and_tools_that_go_on_beside_it(world: World) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd = home / "web" / "w1"
        async with world.client() as client:
            await _post(world, "claude", _hook("PermissionRequest", cwd, tool_name="WebFetch"))
            await client.until(lambda c: _state(c, "web-w1") == ("waiting", "permission"))
            await _post(world, "claude", _hook("PreToolUse", cwd, tool_name="Bash", agent_id="a1"))
            await _post(world, "claude", _hook("PostToolUse", cwd, tool_name="Read"))
            assert await _count(world, "ignored") == 2
            await _post(world, "claude", _hook("SessionStart", cwd, session="s2"))
            await client.until(lambda c: _state(c, "web-w1", "claude-s2") == ("idle", None))
            assert _state(client, "web-w1") == ("waiting", "permission")
            await _post(world, "claude", _hook("PostToolUse", cwd, tool_name="WebFetch"))
            await client.until(lambda c: _state(c, "web-w1") == ("working", None))

    runs(world, test)


def test_what_waits_is_known_to_every_gateway_and_to_one_that_was_started_anew() -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd, other = home / "web" / "w1", home / "web" / "w2"
        first, second = world.urls
        async with world.client() as client:
            await _post(world, "claude", _hook("PermissionRequest", cwd, tool_name="WebFetch", agent_id="a1"), at=first)
            await client.until(lambda c: _state(c, "web-w1") == ("waiting", "permission"))
            world.gateways[0].kill()
            world.gateways[0].start()
            await world.until(world.is_up, "the first gateway")
            for n, url in enumerate((first, second)):
                for beside in ("PreToolUse", "Notification"):
                    more = {"tool_name": "Bash", "agent_id": "a2", "notification_type": "permission_prompt"}
                    await _post(world, "claude", _hook(beside, cwd, **more), at=url)
                await _post(world, "claude", _hook("PostToolUse", cwd, tool_name="Read", agent_id="a1"), at=url)
                await _post(world, "claude", _hook("SessionStart", cwd, session=f"after-{n}"), at=url)
            await client.until(lambda c: {"claude-after-0", "claude-after-1"} <= set(c.state["web-w1"]["sessions"]))
            assert _state(client, "web-w1") == ("waiting", "permission")
            ends = _hook("PostToolUse", cwd, tool_name="WebFetch", agent_id="a1")
            await _post(world, "claude", ends, at=second)
            await client.until(lambda c: _state(c, "web-w1") == ("working", None))
            # It goes elsewhere, and another gateway hears of it than did before.
            await _post(world, "claude", _hook("UserPromptSubmit", other), at=first)
            await client.until(lambda c: _state(c, "web-w2") == ("working", None))
            await client.until(lambda c: _state(c, "web-w1") == ("exited", None))

    with deployed(gateways=2, ports="range", port=free_ports(2)) as world:
        runs(world, test)


def test_a_session_is_in_one_worktree_at_a_time_and_agents_elsewhere_are_only_counted(world: World) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        one, two = home / "web" / "w1", home / "web" / "w2" / "src"
        async with world.client() as client:
            await _post(world, "claude", _hook("UserPromptSubmit", one))
            await client.until(lambda c: _state(c, "web-w1") == ("working", None))
            await _post(world, "claude", _hook("CwdChanged", one, old_cwd=str(one), new_cwd=str(two)))
            await client.until(lambda c: _state(c, "web-w2") == ("working", None))
            await client.until(lambda c: _state(c, "web-w1") == ("exited", None))
            # It has a look around elsewhere, and is done there.
            await _post(world, "claude", _hook("Stop", "/usr"))
            await client.until(lambda c: _state(c, "web-w2") == ("idle", None))
            seen = 3
            for folder in ("/usr", str(home), "/nowhere/at/all", "/"):
                assert await _post(world, "claude", _hook("Stop", folder, session="s9")) in WELL
                await _settled(world, seen := seen + 1)
            assert await _count(world, "elsewhere") == 4
            assert "claude-s9" not in json.dumps(client.state)

    runs(world, test)


def test_a_token_reports_hooks_of_its_own_projects_only_and_one_that_reads_reports_none(world: World) -> None:
    """W1"""

    async def test(world: World) -> None:
        home = await _followed(world, "web", "api")
        _, writer = await asyncio.to_thread(created, world, "-p", "api")
        _, reader = await asyncio.to_thread(created, world, "-p", "web", "--read-only")
        web, api = home / "web" / "w1", home / "api" / "w1"
        await world.until(lambda: _allowed(world, writer), "the new token")
        assert await _post(world, "claude", _hook("UserPromptSubmit", web)) in WELL
        await _settled(world, 1)
        assert await _post(world, "claude", _hook("Stop", web), **bearer(reader)) == 403
        assert await _post(world, "claude", _hook("Stop", web), **bearer("wrong")) == 401
        # The same answer as for a folder that is no worktree; and a session of another's is not dragged away.
        assert await _post(world, "claude", _hook("Stop", web), **bearer(writer)) in WELL
        assert await _post(world, "claude", _hook("CwdChanged", web, new_cwd=str(api)), **bearer(writer)) in WELL
        assert await _post(world, "claude", _hook("Stop", "/usr"), **bearer(writer)) in WELL
        async with world.client() as client, world.client("api") as other:
            await other.until(lambda c: _state(c, "api-w1") == ("idle", None))
            await client.until(lambda c: "web-w1" in c.state)
            assert _state(client, "web-w1") == ("working", None)

    runs(world, test)


async def _allowed(world: World, secret: str) -> bool:
    async with (
        aiohttp.ClientSession(headers=bearer(secret)) as http,
        http.get(world.url + "v1/projects") as answer,
    ):
        return answer.status == 200


def test_while_the_aggregator_stands_still_or_is_dead_agents_are_answered_at_once_and_nothing_is_lost(
    world: World,
) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd = home / "web" / "w1"
        took: list[float] = []

        async def timed(name: str, session: str) -> None:
            began = time.monotonic()
            assert await _post(world, "claude", _hook(name, cwd, session=session)) in WELL
            took.append(time.monotonic() - began)

        os.kill(world.aggregator.process.pid, signal.SIGSTOP)
        try:
            for n in range(40):
                await timed("UserPromptSubmit", f"stopped-{n}")
        finally:
            os.kill(world.aggregator.process.pid, signal.SIGCONT)
        world.aggregator.kill()
        for n in range(40):
            await timed("UserPromptSubmit", f"killed-{n}")
        await _settled(world, 80)
        assert await _count(world, "taken") == 80
        assert statistics.median(took) < 0.05, sorted(took)
        reconciler = Child(world.settings, "reconciler")
        world.aggregator.start()
        try:
            async with world.client() as client:
                sessions = [f"claude-{how}-{n}" for how in ("stopped", "killed") for n in range(40)]
                # Of very many sessions the catalog keeps those that matter most: none of these has ended.
                kept = await asyncio.to_thread(_sessions, world)
                assert set(kept) <= set(sessions)
                assert len(kept) == 60
                await client.until(lambda c: set(c.state.get("web-w1", {}).get("sessions", {})) == set(kept))
        finally:
            reconciler.end()

    runs(world, test)


def _sessions(world: World) -> list[str]:
    from sqlalchemy import text

    store = catalog.open_url(world.settings.database_url)
    with store.engine.connect() as connection:
        found = [str(id_) for id_ in connection.scalars(text("select id from session"))]
    store.close()
    return found


def test_while_the_catalog_is_locked_an_agent_does_not_wait_and_the_state_is_written_once_it_is_free(
    world: World,
) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd = home / "web" / "w1"
        async with world.client() as client:
            await client.until(lambda c: "web-w1" in c.state)
            store = catalog.open_url(world.settings.database_url)
            with store.engine.connect().execution_options(treewire_write=True) as held, held.begin():
                began = time.monotonic()
                for hook in (
                    _hook("SessionStart", cwd, model="claude-opus-4-6"),
                    _hook("UserPromptSubmit", cwd),
                    _hook("PermissionRequest", cwd, tool_name="Bash"),
                ):
                    assert await _post(world, "claude", hook) == 202
                assert time.monotonic() - began < 1.5
                await world.until(lambda: _held(world), "one that is held")
            store.close()
            await client.until(lambda c: _state(c, "web-w1") == ("waiting", "permission"))
            assert client.state["web-w1"]["sessions"]["claude-s1"]["model"] == "claude-opus-4-6"
            await world.until(lambda: _nothing_held(world), "nothing that is held")

    runs(world, test)


async def _held(world: World) -> bool:
    return world.metric((await world.get("metrics"))[2], "treewire_hooks_held") > 0


async def _nothing_held(world: World) -> bool:
    return not await _held(world)


def test_a_hook_that_carries_a_whole_file_is_taken_and_one_without_end_is_let_go(world: World) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        cwd = home / "web" / "w1"
        large = _hook("PreToolUse", cwd, tool_name="Write", tool_input={"content": "x" * (4 << 20)})
        assert await _post(world, "claude", large) in WELL
        async with world.client() as client:
            await client.until(lambda c: _state(c, "web-w1") == ("working", None))
        url = world.url + "v1/events/claude"
        try:
            async with world.http.post(url, data=b" " * (17 << 20), headers=world.bearer) as answer:
                assert answer.status == 202
        except aiohttp.ClientError:
            pass  # it was hung up on in the middle of it
        assert await _count(world, "lost") == 1
        assert await _post(world, "claude", _hook("Stop", cwd)) in WELL

    runs(world, test)


def test_a_gateway_that_ends_leaves_the_whole_catalog_in_its_file(world: World) -> None:
    async def test(world: World) -> None:
        home = await _followed(world)
        log = Path(f"{world.settings.home}/treewire.db-wal")
        assert await _post(world, "claude", _hook("UserPromptSubmit", home / "web" / "w1")) in WELL
        await _settled(world, 1)
        assert log.exists()
        assert await asyncio.to_thread(world.gateway.end) == 0
        assert not log.exists()

    runs(world, test)
