"""The four journeys of docs/architecture.md, each through a whole real deployment under supervisord."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from benchmarks import deployment
from pipeline import bus, wire
from pipeline import catalog as catalogs
from pipeline.catalog import Observed
from pipeline.domain import patch
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("journeys")]


class Deployed(NamedTuple):
    settings: Settings
    url: str
    token: str
    repository: Path
    parent: Path

    @property
    def project(self) -> str:
        return self.repository.name

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", *args, "--home", str(self.settings.home)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def client(self) -> Client:
        return Client(self.url, self.token, self.project)

    async def post(self, body: Any) -> int:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(self.url.rstrip("/") + "/v1/events", json=body) as answer,
        ):
            return answer.status

    async def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(self.url.rstrip("/") + path) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json()

    def event(self, workspace: str, state: str, seq: int, session: str = "s1") -> dict[str, Any]:
        return {
            "project": self.project,
            "workspace": workspace,
            "group": f"session:{session}",
            "fields": {"provider": "claude", "state": state},
            "seq": seq,
            "source": "test",
        }


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    parent = Path(tempfile.mkdtemp(prefix="tw-repo-"))
    try:
        repository = deployment.worktrees(parent, 3, 20)
        with (
            deployment.home() as settings,
            deployment.deployment(settings, repository, TREEWIRE_GATEWAY__HEARTBEAT_MS="500") as url,
        ):
            yield Deployed(settings, url, settings.token_path.read_text().strip(), repository, parent)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def named(client: Client, name: str) -> dict[str, Any]:
    """The workspace of this name, or nothing yet."""
    return next((entry for entry in client.state.values() if entry.get("life", {}).get("name") == name), {})


def id_of(client: Client, name: str) -> str:
    return next(key for key, entry in client.state.items() if entry["life"]["name"] == name)


async def settled(client: Client, worktrees: int = 4) -> None:
    """All worktrees are there and git has counted each."""
    await client.until(lambda c: len(c.state) >= worktrees and all("git" in entry for entry in c.state.values()), 40)


async def test_journey_a_an_agents_event_reaches_every_screen(deployed: Deployed) -> None:
    async with deployed.client() as one, deployed.client() as two:
        await settled(one)
        workspace = id_of(one, "task-0")
        assert await deployed.post(deployed.event(workspace, "working", 1)) == 202
        for client in (one, two):
            await client.until(lambda c: named(c, "task-0").get("status", {}).get("code") == "agent_working")
        by_path = deployed.event(str(deployed.parent / "task-0"), "waiting", 2)
        by_path["fields"]["waiting_for"] = "permission"
        assert await deployed.post([by_path]) == 202
        for client in (one, two):
            await client.until(lambda c: named(c, "task-0").get("status", {}).get("needs_user") is True)
            assert named(client, "task-0")["sessions"]["s1"]["waiting_for"] == "permission"
            seen = client.verified
            await client.until(lambda c, seen=seen: c.verified > seen)
            assert client.mismatches == []


async def test_journey_b_a_git_change_becomes_counts_and_a_commit_moves_ahead(deployed: Deployed) -> None:
    async with deployed.client() as client:
        await settled(client)
        tree = deployed.parent / "task-1"
        before = named(client, "task-1")["git"]
        with (tree / "dir1" / "file1.txt").open("a") as file:
            file.write("one more\n" * 7)
        await client.until(
            lambda c: named(c, "task-1")["git"].get("insertions", 0) == before.get("insertions", 0) + 7, 30
        )
        assert named(client, "task-1")["git"]["files"] == before["files"] + 1
        env = {**os.environ, "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t", "GIT_COMMITTER_NAME": "t"}
        env["GIT_COMMITTER_EMAIL"] = "t"
        subprocess.run(["git", "commit", "-qam", "more"], cwd=tree, env=env, check=True)
        await client.until(lambda c: named(c, "task-1")["git"].get("ahead") == before.get("ahead", 0) + 1, 30)
        after = named(client, "task-1")["git"]
        assert after["insertions"] == before["insertions"] + 7
        assert after["head"] != before["head"]
        assert client.mismatches == []


async def test_journey_c_what_is_written_to_the_catalog_alone_reaches_the_screen_by_a_census(
    deployed: Deployed,
) -> None:
    """No message tells of it. The tap shows that it was a census that found it, and what it put right."""
    censuses: list[wire.Counted] = []
    rulings: list[wire.Ruled] = []

    def tapped(messages: list[wire.Tap]) -> None:
        censuses.extend(message for message in messages if isinstance(message, wire.Counted))
        rulings.extend(message for message in messages if isinstance(message, wire.Ruled))

    def alone(group: str, **fields: Any) -> list[Observed]:
        now = now_ns()
        return [Observed(deployed.project, "orchestrated", group, fields, Stamp(now, now, CLOCK), wall_ms())]

    def event(group: str, **fields: Any) -> dict[str, Any]:
        return {"project": deployed.project, "workspace": "orchestrated", "group": group, "fields": fields}

    def state(client: Client) -> str:
        return str(client.state.get("orchestrated", {}).get("sessions", {}).get("s1", {}).get("state"))

    catalog = catalogs.open(deployed.settings)
    taps = bus.tap(deployed.settings.run_dir, tapped)
    try:
        async with deployed.client() as client:
            await settled(client)
            assert await deployed.post([event("life", phase="ready"), event("session:s1", state="working")]) == 202
            await client.until(lambda c: state(c) == "working")
            drifted = drift(deployed)
            rulings.clear()

            await asyncio.to_thread(catalog.record, alone("session:s1", state="idle"))
            await client.until(lambda c: state(c) == "idle")
            await client.until(lambda _: any(census.drift.get("session") for census in censuses))
            # The tap may still be telling of the events before; what counts is who brought the state.
            applied = [r.look for r in rulings if r.look.workspace == "orchestrated" and r.verdict == "applied"]
            idle = [look for look in applied if getattr(look.value, "state", "") == "idle"]
            assert [(look.group, look.stamp.began < look.stamp.ended) for look in idle] == [("session:s1", True)]

            now = now_ns()
            await asyncio.to_thread(catalog.archive_workspace, "orchestrated", Stamp(now, now, CLOCK), wall_ms())
            await client.until(lambda c: "orchestrated" not in c.state)
            await client.until(lambda _: any("orchestrated" in census.buried for census in censuses))
            await client.until(lambda _: drift(deployed) >= drifted + 2)
            assert client.mismatches == []
    finally:
        for tap in taps:
            tap.close()
        catalog.close()


def drift(deployed: Deployed) -> int:
    """How many known values censuses had to put right, as `treewire status` tells."""
    return int(beats(deployed)["aggregator"]["figures"]["drift"])


async def test_what_is_archived_by_a_command_leaves_at_once_and_without_a_census(deployed: Deployed) -> None:
    async with deployed.client() as client:
        await settled(client)
        event = {"project": deployed.project, "workspace": "asked-to-go", "group": "life", "fields": {"phase": "ready"}}
        assert await deployed.post(event) == 202
        await client.until(lambda c: "asked-to-go" in c.state)
        done = deployed.cli("workspace", "archive", "asked-to-go")
        assert done.returncode == 0, done.stdout + done.stderr
        await client.until(lambda c: "asked-to-go" not in c.state)
        told = json.loads(deployed.cli("explain", "asked-to-go", "life", "--json").stdout)
        look = told["rulings"]["life"][-1]["look"]
        assert (look["value"]["phase"], look["producer"]) == ("archived", "treewire workspace archive")


async def test_an_archived_worktree_leaves_every_client_and_stays_away(deployed: Deployed) -> None:
    async with deployed.client() as one, deployed.client() as two:
        await settled(one)
        tree = deployed.parent / "shelved"
        add = ["git", "-C", str(deployed.repository), "worktree", "add", "-q", "-b", "shelved", str(tree)]
        subprocess.run(add, check=True, capture_output=True)
        for client in (one, two):
            await client.until(lambda c: named(c, "shelved").get("git") is not None, 30)
        event = {"project": deployed.project, "workspace": str(tree), "group": "life", "fields": {"phase": "archived"}}
        assert await deployed.post(event) == 202
        for client in (one, two):
            await client.until(lambda c: not named(c, "shelved"))
        # Another worktree makes discovery look again: what was archived by hand stays archived.
        late = deployed.parent / "after"
        subprocess.run([*add[:-2], "after", str(late)], check=True, capture_output=True)
        for client in (one, two):
            await client.until(lambda c: named(c, "after").get("git") is not None, 30)
            assert not named(client, "shelved")
            assert client.mismatches == []
        assert (tree / ".git").exists()


async def test_journey_d_a_client_that_was_away_gets_the_difference(deployed: Deployed) -> None:
    client = deployed.client()
    client.start()
    await settled(client)
    workspace = id_of(client, "task-2")
    await client.stop()
    seen = len(client.frames)
    assert await deployed.post(deployed.event(workspace, "working", 10)) == 202
    async with deployed.client() as other:
        await other.until(lambda c: named(c, "task-2").get("status", {}).get("code") == "agent_working")
    client.start()
    await client.until(lambda c: named(c, "task-2").get("status", {}).get("code") == "agent_working")
    kinds = [frame["type"] for frame in client.frames[seen:] if frame["type"] in ("snapshot", "delta")]
    assert kinds[0] == "delta"
    assert "snapshot" not in kinds
    verified = client.verified
    await client.until(lambda c: c.verified > verified)
    assert client.mismatches == []
    await client.stop()


async def test_a_worktree_that_is_removed_leaves_every_client_and_may_come_back(deployed: Deployed) -> None:
    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(deployed.repository), *args], check=True, capture_output=True)

    async with deployed.client() as one, deployed.client() as two:
        await settled(one)
        tree = deployed.parent / "late"
        git("worktree", "add", "-q", "-b", "late", str(tree))
        for client in (one, two):
            await client.until(lambda c: named(c, "late").get("git") is not None, 30)
        git("worktree", "remove", "--force", str(tree))
        for client in (one, two):
            await client.until(lambda c: not named(c, "late"), 30)
        git("worktree", "add", "-q", str(tree), "late")
        for client in (one, two):
            await client.until(lambda c: named(c, "late").get("git") is not None, 30)
        git("worktree", "remove", "--force", str(tree))
        for client in (one, two):
            await client.until(lambda c: not named(c, "late"), 30)
            assert client.mismatches == []


@pytest.mark.timeout(300)
async def test_kill_9_of_each_process_in_turn_ends_with_equal_hashes(deployed: Deployed) -> None:
    """While events flow; every client ends with the hash of the aggregator, and none ever saw an empty list."""
    async with deployed.client() as one, deployed.client() as two:
        await settled(one)
        await settled(two)
        workspace = id_of(one, "task-0")
        states = ("working", "idle")
        accepted = 100
        stop = asyncio.Event()

        async def events() -> None:
            nonlocal accepted
            while not stop.is_set():
                event = deployed.event(workspace, states[accepted % 2], accepted + 1, "flow")
                with contextlib.suppress(aiohttp.ClientError, OSError):  # the gateway itself is being killed
                    if await deployed.post(event) == 202:
                        accepted += 1
                await asyncio.sleep(0.05)

        flow = asyncio.create_task(events())
        for name in ("worker-0", "worker-1", "reconciler", "sources", "dispatcher", "aggregator", "gateway-0"):
            pid = pid_of(deployed, name)
            os.kill(pid, signal.SIGKILL)
            await until_back(deployed, name, pid)
            before = one.version, one.epoch
            await one.until(lambda c, before=before: (c.version, c.epoch) != before, 30)
        stop.set()
        await flow
        expected = states[(accepted - 1) % 2]
        for client in (one, two):
            await client.until(
                lambda c: c.state.get(workspace, {}).get("sessions", {}).get("flow", {}).get("state") == expected, 20
            )
            await same_hash(deployed, client)
            snapshots = [frame for frame in client.frames if frame["type"] == "snapshot"]
            assert all(frame["workspaces"] for frame in snapshots), "an empty list was shown as truth"
            assert client.mismatches == []


def beats(deployed: Deployed) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_bytes().strip(b"\0 \n")) for path in deployed.settings.run_dir.glob("*.beat")
    }


def pid_of(deployed: Deployed, name: str) -> int:
    return int(beats(deployed)[name]["pid"])


async def until_back(deployed: Deployed, name: str, old: int) -> None:
    for _ in range(600):
        try:
            if pid_of(deployed, name) != old:
                return
        except (KeyError, ValueError):
            pass
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} did not come back: {deployed.cli('status').stdout}")


async def same_hash(deployed: Deployed, client: Client) -> None:
    """The client's version and the hash that it computed itself are those that the aggregator announces."""
    heads: list[wire.Head] = []

    def take(messages: list[wire.Feed]) -> None:
        heads.extend(message.heads[deployed.project] for message in messages if isinstance(message, wire.Heartbeat))

    feed = bus.feed(deployed.settings.run_dir, take)
    try:
        for _ in range(200):
            mine = (client.version, patch.state_hash(client.state))
            if heads and (heads[-1].version, heads[-1].hash) == mine:
                return
            await asyncio.sleep(0.1)
    finally:
        feed.close()
    raise AssertionError(f"client {client.version} {client.hash}, aggregator {heads[-1:]}")
