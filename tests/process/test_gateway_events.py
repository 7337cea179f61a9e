"""`POST /v1/events`: what is reported, over a real catalog and a real aggregator."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway import ingest
from gateway.ingest import Recorder, Written, handler
from gateway.tokens import OPERATOR
from pipeline import catalog
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.settings import Settings
from tests.world import World, deployed, runs


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


def _life(workspace: str, **fields: Any) -> dict[str, Any]:
    return {"project": "web", "workspace": workspace, "group": "life", "fields": {"name": workspace, **fields}}


def _session(workspace: str, state: str, **more: Any) -> dict[str, Any]:
    fields = {"provider": "claude", "state": state}
    return {"project": "web", "workspace": workspace, "group": "session:s1", "fields": fields, **more}


async def _followed(world: World) -> Path:
    """The catalog follows a project, and the aggregator has heard of it."""
    folder = world.settings.home / "web"
    folder.mkdir()
    store = await asyncio.to_thread(catalog.open_url, world.settings.database_url)
    await asyncio.to_thread(store.add_project, folder, wall_ms())
    store.close()
    await world.ready()
    return folder


def test_an_event_is_recorded_and_reaches_every_client(world: World) -> None:
    async def test(world: World) -> None:
        folder = await _followed(world)
        async with world.client() as client:
            await client.until(lambda c: c.version >= 0)
            assert await world.post([_life("w1", path=str(folder / "w1")), _session("w1", "working")]) == (
                202,
                {"accepted": 2},
            )
            await client.until(lambda c: c.state.get("w1", {}).get("sessions"))
            assert client.state["w1"]["status"]["code"] == "agent_working"
            hook = _session(str(folder / "w1"), "waiting")
            del hook["project"]
            assert (await world.post(hook))[0] == 202
            await client.until(lambda c: c.state["w1"]["sessions"]["s1"]["state"] == "waiting")
            assert str(folder) not in json.dumps(client.frames)
        store = catalog.open_url(world.settings.database_url)
        assert [workspace.id for workspace in store.workspaces()] == ["w1"]
        store.close()

    runs(world, test)


def test_a_request_with_one_bad_event_is_refused_whole_and_names_it(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        good = _life("w1")
        for bad, field in (
            ({**good, "age_ms": "soon"}, "age_ms"),
            ({**good, "project": "nope"}, "project"),
            ({**good, "group": "git", "fields": {"files": 1}}, "group"),
            ({**good, "fields": {"phase": "sleeping"}}, "fields.phase"),
            ({**good, "fields": {"pid": 4711}}, "fields.pid"),
            (_session("unheard-of", "working"), "workspace"),
            (_session("/nowhere/at/all", "working"), "workspace"),
            (_session("/nul\0", "working"), "workspace"),
            ({**good, "extra": 1}, None),
            (17, None),
        ):
            status, told = await world.post([good, bad])
            assert (status, told["index"], told["accepted"]) == (400, 1, 0), bad
            assert told["message"].startswith("events[1]: ")
            assert field is None or told["field"] == field, told
        for body in (b"", b"{", b"[" * 100_000, b"\xff"):
            status, told = await world.post(body)
            assert (status, told["code"], told["field"], told["accepted"]) == (400, "bad_event", "body", 0)
        status, told = await world.post({**good, "group": "git"})
        assert (status, told["message"]) == (400, "group: git is measured by treewire; it cannot be reported")
        assert await world.post([]) == (202, {"accepted": 0})
        for large in ([good] * 1001, b'"' + b"x" * (1 << 20) + b'"'):
            status, told = await world.post(large)
            assert (status, told["code"], told["field"]) == (413, "too_large", "body")
        assert (await world.json("v1/projects"))["projects"][0]["workspaces"] == 0
        assert (await world.post(good))[0] == 202

    runs(world, test)


def test_a_value_that_there_is_not_is_answered_with_those_that_there_are(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        status, told = await world.post(_life("w1", phase="sleeping"))
        assert (status, told["field"]) == (400, "fields.phase")
        assert told["message"].endswith("it is one of new, provisioning, ready, failed, archiving, archived")

    runs(world, test)


def test_an_event_that_says_nothing_makes_no_workspace(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        for fields in ({}, {"name": None}):
            status, told = await world.post({**_life("w1"), "fields": fields})
            assert (status, told["field"]) == (400, "fields"), told
        assert (await world.post(_life("w1")))[0] == 202
        assert (await world.post({**_life("w1"), "fields": {}}))[0] == 202
        store = catalog.open_url(world.settings.database_url)
        assert [workspace.name for workspace in store.workspaces()] == ["w1"]
        store.close()

    runs(world, test)


def test_what_comes_packed_is_refused_before_it_is_unpacked(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        good = json.dumps(_life("w1")).encode()
        for coding, body in (
            ("gzip", gzip.compress(b" " * (64 << 20))),
            ("gzip", b"no gzip at all"),
            ("deflate", zlib.compress(good)),
            ("br", good),
            ("zstd", good),
            ("gzip, identity", good),
        ):
            status, told = await world.post(body, **{"Content-Encoding": coding})
            assert (status, bool(told["message"])) == (415, True), coding
            url = world.url + "v1/tickets"
            headers = {**world.bearer, "Content-Encoding": coding}
            async with world.http.post(url, data=body, headers=headers) as answer:
                assert answer.status == 415
        assert (await world.post(good, **{"Content-Encoding": "identity"}))[0] == 202
        assert "Traceback" not in world.gateway.said

    runs(world, test)


@pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")
def test_when_no_more_can_be_written_or_passed_on_a_request_is_put_off(tmp_path: Path) -> None:
    """The thread that writes stands still, and then the aggregator."""

    async def test() -> None:
        settings = Settings(home=tmp_path)
        hold, recorder = threading.Event(), Recorder(settings, structlog.get_logger())
        recorder._write = lambda batches: (hold.wait(10), recorder.__class__._write(recorder, batches))  # type: ignore
        hub: Any = SimpleNamespace(full=False, send=lambda looks: None)
        application = web.Application()
        application.middlewares.append(_as_operator)
        application.router.add_post("/v1/events", handler(recorder, hub))
        async with TestClient(TestServer(application)) as client:
            many = json.dumps([_life(f"w{n}") for n in range(1000)])
            waiting = [asyncio.create_task(client.post("/v1/events", data=many)) for _ in range(5)]
            try:
                async with asyncio.timeout(10):
                    while recorder._waiting < 5000:
                        await asyncio.sleep(0.01)
                answer = await client.post("/v1/events", data=json.dumps(_life("w1")))
                assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
            finally:
                hold.set()
            assert {one.status for one in await asyncio.gather(*waiting)} == {
                400
            }  # no such project: they were looked at
            hub.full = True
            answer = await client.post("/v1/events", data=json.dumps(_life("w1")))
            assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        await asyncio.to_thread(recorder.close)

    asyncio.run(test())


@web.middleware
async def _as_operator(request: web.Request, handler: Any) -> web.StreamResponse:
    request["caller"] = OPERATOR
    answer: web.StreamResponse = await handler(request)
    return answer


def test_events_sent_at_once_share_transactions_and_none_is_lost(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        answers = await asyncio.gather(*(world.post(_life(f"w{n}")) for n in range(100)))
        assert {status for status, _ in answers} == {202}
        async with world.client() as client:
            await client.until(lambda c: len(c.state) == 100)
        text = (await world.get("metrics"))[2].decode()
        commits = next(line for line in text.splitlines() if line.startswith("treewire_event_commits_total"))
        assert float(commits.split()[-1]) < 100

    runs(world, test)


def test_while_the_aggregator_is_away_events_are_still_taken_and_quickly(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        world.aggregator.kill()
        for n in range(3):
            began = time.monotonic()
            assert (await world.post(_life(f"w{n}")))[0] == 202
            assert time.monotonic() - began < 2
        store = catalog.open_url(world.settings.database_url)
        assert len(store.workspaces()) == 3
        store.close()

    runs(world, test)


def test_a_catalog_that_stays_locked_is_answered_with_come_back_later_and_no_path(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        store = catalog.open_url(world.settings.database_url)
        with store.engine.connect().execution_options(treewire_write=True) as held, held.begin():
            status, told = await world.post(_life("w1"))
        store.close()
        assert status == 503
        assert str(world.settings.home) not in json.dumps(told)
        assert (await world.json("readyz"))["parts"]["catalog"]["state"] == "degraded"
        assert (await world.post(_life("w1")))[0] == 202
        assert (await world.json("readyz"))["parts"]["catalog"]["state"] == "ok"

    runs(world, test)


def test_what_was_refused_for_want_of_time_is_not_written_later_and_what_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 means that nothing was written, so that whoever sends it again writes it once."""
    monkeypatch.setattr(ingest, "TAKE_S", 0.2)
    settings = Settings.load(tmp_path, environ={})

    async def test() -> None:
        begun, hold, written = threading.Event(), threading.Event(), []
        recorder = Recorder(settings, structlog.get_logger())

        def write(batches: list[Any]) -> None:
            begun.set()
            hold.wait(10)
            for batch in batches:
                written.append(batch.events)
                batch.done(Written([], []))

        recorder._write = write  # type: ignore[method-assign]
        first = asyncio.create_task(recorder.take(["first"]))
        await asyncio.to_thread(begun.wait, 10)
        with pytest.raises(TimeoutError):
            await recorder.take(["second"])
        assert not first.done()
        hold.set()
        assert await first == Written([], [])
        assert await recorder.take(["third"]) == Written([], [])
        assert written == [["first"], ["third"]]
        await asyncio.to_thread(recorder.close)

    asyncio.run(test())
