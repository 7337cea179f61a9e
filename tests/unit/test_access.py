"""Who may come in: every route, under every Host, Origin and credential, over a real server without a pipeline."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import app
from gateway.access import Access, token_of
from gateway.socket import Tally
from pipeline.runtime.place import OperatorError
from pipeline.runtime.settings import Settings

TOKEN = "the-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "treewire.v1",
}


class Server:
    """The gateway's own routes and middleware; what lies behind them is not there."""

    def __init__(self, application: web.Application, access: Access, port: int, client: aiohttp.ClientSession) -> None:
        self.application, self.access, self.port, self.client = application, access, port, client

    @property
    def cookie(self) -> dict[str, str]:
        return {"Cookie": f"{self.access.cookie}={self.access._pass}"}

    async def status(self, path: str = "/page.js", method: str = "GET", **headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, f"http://127.0.0.1:{self.port}{path}", headers=named) as answer:
            return answer.status

    async def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, f"http://127.0.0.1:{self.port}{path}", headers=named) as answer:
            return answer.status, answer.headers, await answer.text()


def served(
    test: Callable[[Server], Awaitable[None]], hosts: list[str] | None = None, origins: list[str] | None = None
) -> None:
    async def run() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        access = Access(TOKEN, "127.0.0.1", port, hosts or [], origins or [])
        process: Any = SimpleNamespace(settings=Settings(home=Path("/nowhere")), stopping=asyncio.Event())
        hub: Any = SimpleNamespace(clients=set(), full=True)
        recorder: Any = SimpleNamespace()
        application = app.make(process, hub, recorder, access, Tally())
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
                await test(Server(application, access, port, client))
        finally:
            await runner.cleanup()

    asyncio.run(run())


def routes(application: web.Application) -> list[tuple[str, str]]:
    """Every registered route, with something in place of its parameters."""
    found = []
    for route in application.router.routes():
        assert route.resource is not None
        found.append((route.method, re.sub(r"{\w+}", "x", route.resource.canonical)))
    assert len(found) > 12
    return found


def test_every_route_but_health_and_readiness_is_closed_to_whoever_has_no_token() -> None:
    async def test(server: Server) -> None:
        for method, path in routes(server.application):
            if path in ("/healthz", "/readyz"):
                continue
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                assert await server.status(path, method, **headers) == 401, (method, path, headers)
        assert await server.status("/v1/nothing") == 401
        assert await server.status("/healthz") == 200

    served(test)


def test_every_route_is_closed_to_foreign_hosts_and_origins_whatever_they_know() -> None:
    async def test(server: Server) -> None:
        for method, path in routes(server.application):
            for foreign in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
                assert await server.status(path, method, **BEARER, **foreign) == 403, (method, path, foreign)
            assert await server.status(path, method, **server.cookie, Origin="http://evil.example") == 403

    served(test)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("[::1]:{port}", 200),
        ("board.example", 200),
        ("board.example:{port}", 200),
        ("127.0.0.1", 403),
        ("127.0.0.1:1", 403),
        ("localhost.evil.example:{port}", 403),
        ("evil.example:{port}", 403),
        ("board.example.evil.example", 403),
        ("board.example:1", 403),
        ("", 403),
    ],
)
def test_only_our_own_host_names_are_answered(host: str, expected: int) -> None:
    async def test(server: Server) -> None:
        assert await server.status(Host=host.format(port=server.port), **BEARER) == expected

    served(test, hosts=["board.example"])


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:{port}", 200),
        ("http://localhost:{port}", 200),
        ("https://board.example", 200),
        ("https://studio.example:3000", 200),
        ("http://studio.example:3000", 403),
        ("https://127.0.0.1:{port}", 403),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("null", 403),
        ("", 403),
        ("file://", 403),
    ],
)
def test_only_origins_that_were_named_are_answered(origin: str, expected: int) -> None:
    async def test(server: Server) -> None:
        assert await server.status(Origin=origin.format(port=server.port), **BEARER) == expected

    served(test, hosts=["board.example"], origins=["https://studio.example:3000"])


def test_two_hosts_or_two_origins_are_refused() -> None:
    async def test(server: Server) -> None:
        for name, ours in (("Host", f"127.0.0.1:{server.port}"), ("Origin", f"http://127.0.0.1:{server.port}")):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = [f"GET /page.js HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"]
            if name == "Origin":
                head.append(f"Host: 127.0.0.1:{server.port}\r\n")
            head += [f"{name}: {ours}\r\n{name}: {ours}\r\n\r\n"]
            writer.write("".join(head).encode())
            assert (await reader.readline()).split()[1] in (b"400", b"403"), name
            writer.close()

    served(test)


def test_a_cookie_counts_only_where_the_browser_says_that_our_page_asks() -> None:
    async def test(server: Server) -> None:
        cookie, ours = server.cookie, f"http://127.0.0.1:{server.port}"
        assert await server.status(**cookie, Origin=ours) == 200
        assert await server.status(**cookie, Sec_Fetch_Site="same-origin") == 200
        assert await server.status(**cookie, Sec_Fetch_Site="none", Sec_Fetch_Mode="navigate") == 200
        assert await server.status(**cookie) == 401
        assert await server.status(**cookie, Sec_Fetch_Site="none") == 401
        assert await server.status(**cookie, Sec_Fetch_Site="same-site") == 401
        assert await server.status(**cookie, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 401
        assert await server.status(**cookie, Origin=f"http://localhost:{server.port}") == 401
        # 503: it got past the door, to an ingress that is full
        assert await server.status("/v1/events", "POST", **cookie, Sec_Fetch_Site="same-origin") == 401
        assert await server.status("/v1/events", "POST", **cookie, Origin=ours) == 503

    served(test)


def test_a_cookie_that_was_not_given_by_us_is_no_cookie() -> None:
    async def test(server: Server) -> None:
        for forged in ("", TOKEN, server.access._pass[:-1], server.access._pass.upper()):
            cookie = f"{server.access.cookie}={forged}"
            assert await server.status(Cookie=cookie, Sec_Fetch_Site="same-origin") == 401, forged

    served(test)


def test_a_websocket_without_an_origin_needs_the_bearer_and_no_cookie_helps() -> None:
    async def test(server: Server) -> None:
        ours = f"http://127.0.0.1:{server.port}"
        stream = "/v1/stream"
        assert await server.status(stream, **UPGRADE, **server.cookie) == 401
        assert await server.status(stream, **UPGRADE, **server.cookie, Sec_Fetch_Site="same-origin") == 401
        assert await server.status(stream, **UPGRADE, **server.cookie, Origin="http://evil.example") == 403
        assert await server.status(stream, **UPGRADE, Origin=ours) == 401
        assert await server.status(stream, **server.cookie, Origin=f"http://localhost:{server.port}") == 401

    served(test)


def test_signing_in_gives_a_cookie_that_scripts_cannot_read_and_that_is_not_the_token() -> None:
    async def test(server: Server) -> None:
        status, headers, _ = await server.ask("/v1/login", "POST", **BEARER, Origin=f"http://127.0.0.1:{server.port}")
        assert status == 204
        cookie = headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert TOKEN not in cookie
        pair = cookie.partition(";")[0]
        assert await server.status(Cookie=pair, Sec_Fetch_Site="same-origin") == 200
        ours = f"http://127.0.0.1:{server.port}"
        assert await server.status("/v1/login", "POST", Cookie=pair, Origin=ours) == 401

    served(test)


def test_the_page_without_credentials_is_the_sign_in_and_its_policy_admits_only_its_own_script() -> None:
    async def test(server: Server) -> None:
        status, headers, body = await server.ask("/")
        assert status == 401
        assert "token" in body
        policy = headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert re.search(r"script-src 'self' 'sha256-[^']+'", policy)
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        status, headers, body = await server.ask("/", **BEARER)
        assert status == 200
        assert "sha256" not in headers["Content-Security-Policy"]
        assert "<script>" not in body

    served(test)


def test_errors_are_json_and_every_answer_is_protected() -> None:
    async def test(server: Server) -> None:
        for path, method, status in (("/nothing", "GET", 404), ("/v1/events", "GET", 405), ("/nothing", "PUT", 404)):
            got, headers, body = await server.ask(path, method, **BEARER)
            assert got == status
            assert headers["Content-Type"].startswith("application/json")
            assert headers["Cache-Control"] == "no-store"
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert '"code":' in body

    served(test)


def test_a_token_is_made_once_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = token_of(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert token_of(path) == token
    assert os.listdir(tmp_path) == ["token"]


def test_a_token_that_others_can_read_or_that_is_empty_or_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("abc\n")
    path.chmod(0o644)
    with pytest.raises(OperatorError, match="chmod 600"):
        token_of(path)
    path.chmod(0o600)
    assert token_of(path) == "abc"
    path.write_text("\n")
    with pytest.raises(OperatorError, match="is empty"):
        token_of(path)
    path.unlink()
    (tmp_path / "other").write_text("abc")
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OperatorError, match="remove it"):
        token_of(path)
