"""Two tenants on one real gateway: whatever the one does, not a byte of the other's reaches him.

Everything of the other tenant carries a canary: ids, names, branches, models, addresses, numbers. What the one
receives, by whatever route, must hold none; and of a project that he may not see he is told exactly what he would be
told of one that does not exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import catalog as catalogs
from pipeline.catalog import Created, Worktree
from pipeline.domain.model import Census, Ci, Git, Key, Life, Look, Pr, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from tests.unit.test_access import served
from tests.world import CENSUS, World, deployed

CANARY = "canary"
NUMBER = 8_765_432_100_000
DIGITS = b"87654321"  # what all of them begin with
WORDS = (b"insertions", b"example.org", b"failure", b"model", b"question")
MINE, THEIRS, NOBODYS = "mine", f"{CANARY}-theirs", "nobodys-project"  # the last two are equally long


class Tenants:
    """Two projects full of everything, and a token for each."""

    def __init__(self, world: World, mine: Created, theirs: Created) -> None:
        self.world, self.mine, self.theirs = world, mine, theirs
        self.version = 0

    async def both(self) -> None:
        """Both projects are shown, and everything in them is known."""

        async def shown() -> bool:
            now = now_ns()
            stamp = Stamp(now, now, CLOCK)
            looks = []
            for project in (MINE, THEIRS):
                life = Life(name=f"{project}-name", phase="ready", branch=f"{project}-branch")
                looks.append(Look(project, f"{project}-w", "life", life, stamp, "catalog"))
            await self.world.send(Census(stamp, "catalog", CENSUS, [MINE, THEIRS], looks))
            paths = ("readyz", f"v1/projects/{MINE}/snapshot", f"v1/projects/{THEIRS}/snapshot")
            return all([(await self.world.get(path))[0] == 200 for path in paths])

        await self.world.until(shown, "two projects")

        async def full() -> bool:
            for project in (MINE, THEIRS):
                await self.change(project, 1)
            told = [await self.world.get(f"v1/projects/{project}/snapshot") for project in (MINE, THEIRS)]
            return all(word in body for _, _, body in told for word in WORDS)

        await self.world.until(full, "everything in both")

    async def change(self, project: str, n: int) -> None:
        now = now_ns()
        stamp, name = Stamp(now, now, CLOCK), f"{project}-{n}"
        number = NUMBER + n if project == THEIRS else n
        for group, value, source, key in (
            ("git", Git(head=name, branch=name, insertions=number), "git", None),
            ("session:s1", Session(provider=name, name=name, model=name, state="working"), "live", None),
            (f"session:{project}", Session(name=name, state="waiting", waiting_for="question"), "live", None),
            ("pr", Pr(number=number, url=f"https://example.org/{name}", state="open"), "catalog", Key(number, name)),
            ("ci", Ci(state="failure", failed=number), "catalog", Key(number, name)),
        ):
            look = Look(project, f"{project}-w", group, value, stamp, source, producer=name, key=key)  # type: ignore[arg-type]
            await self.world.send(look)

    @contextlib.asynccontextmanager
    async def client(self, token: str) -> AsyncIterator[Tenant]:
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http,
            http.ws_connect(self.world.url + "v1/stream", protocols=["treewire.v1"]) as socket,
        ):
            tenant = Tenant(self.world, http, socket)
            await socket.send_json({"type": "hello"})
            listening = asyncio.create_task(tenant.listen())
            try:
                yield tenant
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)


class Tenant:
    """A client that keeps every byte it gets."""

    def __init__(self, world: World, http: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.received = bytearray()
        self.types: list[str] = []
        self._world, self._http, self._socket = world, http, socket
        self._arrived = asyncio.Event()

    async def listen(self) -> None:
        async for message in self._socket:
            frame = json.loads(message.data)
            self.received += message.data.encode()
            self.types.append(frame["type"])
            self._arrived.set()
            if frame["type"] == "heartbeat":
                await self._socket.send_json({"type": "ack", "n": frame["n"], "subscriptions": {}})

    async def say(self, **message: Any) -> None:
        if not self._socket.closed:
            await self._socket.send_json(message)

    async def until(self, what: bytes) -> None:
        async with asyncio.timeout(20):
            while what not in self.received:
                self._arrived.clear()
                await self._arrived.wait()

    async def get(self, path: str, **headers: str) -> None:
        async with self._http.get(self._world.url + path, headers=headers) as answer:
            self.received += repr(sorted(answer.headers.items())).encode()
            if answer.content_type != "text/event-stream":
                self.received += await answer.read()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    async for chunk in answer.content.iter_any():
                        self.received += chunk

    async def post(self, body: Any) -> None:
        async with self._http.post(self._world.url + "v1/events", json=body) as answer:
            self.received += await answer.read()


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def tenants(runner: asyncio.Runner) -> Iterator[Tenants]:
    with deployed() as world:
        catalog = catalogs.open(world.settings)
        catalog.add_project(f"/srv/{MINE}", 1)
        catalog.add_project(f"/srv/{THEIRS}", 1, f"{CANARY} name")
        there = Worktree(f"/srv/{THEIRS}/tree", "b", f"/srv/{THEIRS}/.git", f"/srv/{THEIRS}/.git", 1, "b")
        catalog.upsert_worktrees(THEIRS, [there], Stamp(now_ns(), now_ns(), CLOCK), 1)
        made = Tenants(world, *(catalog.create_token(wall_ms(), [project]) for project in (MINE, THEIRS)))
        catalog.close()
        running = world.running()
        runner.run(running.__aenter__())
        try:
            runner.run(made.both())
            yield made
        finally:
            runner.run(running.__aexit__(None, None, None))


# ── what the one tenant may try ──────────────────────────────────────────────────────────────────

PROJECT = st.sampled_from([MINE, THEIRS, THEIRS, NOBODYS, f"{THEIRS}/", f"/srv/{THEIRS}", f"{CANARY} name", "*", ""])
WORKSPACE = st.sampled_from([f"{MINE}-w", f"{THEIRS}-w", f"/srv/{THEIRS}/tree", "none"])
GROUP = st.sampled_from(["git", "session:s1", f"session:{THEIRS}", "life", "*"])
VERSION = st.one_of(st.integers(0, 40), st.just(2**53 - 1))
ID = st.integers(0, 3)
STEP = st.one_of(
    st.tuples(st.just("change"), st.sampled_from([MINE, THEIRS]), st.integers(0, 1000)),
    st.tuples(st.just("subscribe"), ID, PROJECT),
    st.tuples(st.just("resume"), ID, PROJECT, VERSION),
    st.tuples(st.just("resync"), ID, st.sampled_from(["gap", "hash"]), VERSION),
    st.tuples(st.just("unsubscribe"), ID),
    st.tuples(st.just("snapshot"), PROJECT),
    st.tuples(st.just("changes"), PROJECT, VERSION),
    st.tuples(st.just("events"), PROJECT, VERSION),
    st.tuples(st.just("explain"), PROJECT, WORKSPACE, GROUP),
    st.tuples(st.just("report"), PROJECT, WORKSPACE, GROUP),
    st.tuples(st.just("ask"), st.sampled_from(["v1/projects", "metrics", "readyz", "healthz", "v1/schema", "nothing"])),
)


async def take(step: tuple[Any, ...], tenants: Tenants, tenant: Tenant, epoch: str) -> None:
    match step:
        case "change", project, n:
            await tenants.change(project, n)
        case "subscribe", id_, project:
            await tenant.say(type="subscribe", id=id_, project=project)
        case "resume", id_, project, version:
            await tenant.say(type="subscribe", id=id_, project=project, epoch=epoch, version=version)
        case "resync", id_, reason, version:
            await tenant.say(type="resync", id=id_, reason=reason, version=version)
        case "unsubscribe", id_:
            await tenant.say(type="unsubscribe", id=id_)
        case "snapshot", project:
            await tenant.get(f"v1/projects/{_quoted(project)}/snapshot")
        case "changes", project, version:
            await tenant.get(f"v1/projects/{_quoted(project)}/changes?since={epoch}.{version}&wait=0")
        case "events", project, version:
            await tenant.get(f"v1/projects/{_quoted(project)}/events", **{"Last-Event-ID": f"{epoch}.{version}"})
        case "explain", project, workspace, group:
            await tenant.get(
                f"v1/projects/{_quoted(project)}/workspaces/{_quoted(workspace)}/explain?group={_quoted(group)}"
            )
        case "report", project, workspace, group:
            event = {"project": project, "workspace": workspace, "group": group, "fields": {}, "age_ms": 0}
            await tenant.post({**event, "source": "tenant", "seq": 1})
        case "ask", path:
            await tenant.get(path)
        case _:
            raise AssertionError(step)


def _quoted(text: str) -> str:
    return re.sub(r"[^\w-]", lambda found: f"%{ord(found[0]):02X}", text)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEP, min_size=4, max_size=30))
def test_whatever_one_tenant_does_he_receives_not_a_byte_of_the_other(
    tenants: Tenants, runner: asyncio.Runner, steps: list[tuple[Any, ...]]
) -> None:
    """W1"""

    async def run() -> None:
        epoch = (await tenants.world.json("readyz"))["parts"]["epoch"]["name"]
        async with tenants.client(tenants.mine.secret) as tenant:
            for step in steps:
                await take(step, tenants, tenant, epoch)
            # What was on its way has arrived when a later change of his own has.
            await tenants.change(THEIRS, 2000)
            tenants.version += 1
            last = 5000 + tenants.version
            await tenant.say(type="unsubscribe", id=3)
            await tenant.say(type="subscribe", id=3, project=MINE)
            await tenants.change(MINE, last)
            await tenant.until(f'"insertions":{last}'.encode())
            leaked = [found for found in (CANARY.encode(), DIGITS) if found in tenant.received]
            assert not leaked, _around(bytes(tenant.received), leaked[0])

    runner.run(run())


def _around(received: bytes, leaked: bytes) -> bytes:
    at = received.index(leaked)
    return received[max(0, at - 200) : at + 200]


def test_the_canary_sings_where_it_may(tenants: Tenants, runner: asyncio.Runner) -> None:
    """What the test above looks for is really there: its owner gets it, by each of these ways."""

    async def run() -> None:
        async with tenants.client(tenants.theirs.secret) as tenant:
            await tenant.say(type="subscribe", id=1, project=THEIRS)
            await tenant.until(CANARY.encode())
            for path in ("snapshot", "events", f"workspaces/{THEIRS}-w/explain"):
                tenant.received.clear()
                await tenant.get(f"v1/projects/{THEIRS}/{path}")
                assert CANARY.encode() in tenant.received, path
                assert DIGITS in tenant.received, path
            tenant.received.clear()
            await tenant.get("v1/projects")
            assert CANARY.encode() in tenant.received
            assert f'"{MINE}"'.encode() not in tenant.received

    runner.run(run())


def _templates() -> list[tuple[str, str]]:
    """Every route that names a project, as the application registers them."""
    found: list[tuple[str, str]] = []

    async def look(server: Any) -> None:
        for route in server.application.router.routes():
            if "{project}" in route.resource.canonical:
                found.append((route.method, route.resource.canonical))

    served(look)
    assert len(found) >= 3
    return found


def test_of_a_project_that_is_not_his_a_tenant_is_told_what_he_is_told_of_none(
    tenants: Tenants, runner: asyncio.Runner
) -> None:
    """Every route that names a project, in status, headers and body; but for what the client itself sent."""
    templates = _templates()

    async def ask(http: aiohttp.ClientSession, method: str, path: str, sent: str, **more: Any) -> Any:
        async with http.request(method, tenants.world.url + path, **more) as answer:
            headers = sorted((k, v) for k, v in answer.headers.items() if k != "Date")
            return answer.status, headers, (await answer.read()).replace(sent.encode(), b"<sent>")

    async def run() -> None:
        headers = {"Authorization": f"Bearer {tenants.mine.secret}"}
        epoch = (await tenants.world.json("readyz"))["parts"]["epoch"]["name"]
        async with aiohttp.ClientSession(headers=headers) as http:
            for method, template in templates:
                for query in ("", f"?since={epoch}.1&wait=0", "?group=git"):
                    told = []
                    for sent in (THEIRS, NOBODYS):
                        path = re.sub(r"{\w+}", f"{sent}-w", template.replace("{project}", sent)).lstrip("/")
                        told.append(await ask(http, method, path + query, sent))
                    assert told[0] == told[1], (method, template)
                    assert told[0][0] in (400, 404), (method, template, told)
            for group in ("git", "life", "session:s1"):
                told = []
                for sent in (THEIRS, NOBODYS):
                    event = {"project": sent, "workspace": f"{sent}-w", "group": group, "fields": {}, "age_ms": 0}
                    told.append(await ask(http, "POST", "v1/events", sent, json=event))
                    for where in ({}, {"project": MINE}, {"project": sent}):
                        event = {**where, "workspace": f"/srv/{sent}/tree", "group": group, "fields": {}, "age_ms": 0}
                        told.append(await ask(http, "POST", "v1/events", sent, json=event))
                assert told[:4] == told[4:], group
                assert {status for status, _, _ in told} == {400}
            for cursor in ({}, {"epoch": epoch, "version": 1}, {"epoch": epoch, "version": 2**40}):
                streams = [await _told(tenants, sent, cursor) for sent in (THEIRS, NOBODYS)]
                assert streams[0] == streams[1]
                assert streams[0][0]["type"] in ("end", "error")

    runner.run(run())


async def _told(tenants: Tenants, project: str, cursor: dict[str, Any]) -> list[dict[str, Any]]:
    """What the stream says to a subscription, until its heartbeat after that."""
    headers = {"Authorization": f"Bearer {tenants.mine.secret}"}
    said: list[dict[str, Any]] = []
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.ws_connect(tenants.world.url + "v1/stream", protocols=["treewire.v1"]) as socket,
    ):
        await socket.send_json({"type": "hello"})
        assert (await socket.receive_json(timeout=20))["type"] == "welcome"
        await socket.send_json({"type": "subscribe", "id": 1, "project": project, **cursor})
        await socket.send_json({"type": "resync", "id": 1, "reason": "hash"})
        while not said or said[-1]["type"] != "heartbeat":
            said.append(await socket.receive_json(timeout=20))
    return [frame for frame in said if frame["type"] != "heartbeat"]
