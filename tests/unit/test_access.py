"""Who may come in: every route, under every Host, Origin and credential, over a real server without a pipeline.

The routes are those that the application registers: a new one is walked without anybody thinking of it here.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway import access as door
from gateway import app, tickets
from gateway.access import FAILURES_BURST, Access, Failures, token_of
from gateway.socket import Tally
from gateway.tickets import TICKET_S, Full, Tickets
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog
from pipeline.runtime.clock import now_ns, wall_ms
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
OPEN = ("/healthz", "/readyz")
SIGNED = ("/v1/webhooks/github",)  # not there without a secret

# Keys with types need a newer aiohttp than treewire asks for.
pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")


class Server:
    """The gateway's own routes and middleware; what lies behind them is not there."""

    def __init__(self, application: web.Application, access: Access, port: int, client: aiohttp.ClientSession) -> None:
        self.application, self.access, self.port, self.client = application, access, port, client

    @property
    def ours(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def status(self, path: str = "/page.js", method: str = "GET", **headers: str) -> int:
        return (await self.ask(path, method, **headers))[0]

    async def ask(
        self, path: str, method: str = "GET", data: bytes | None = None, **headers: str
    ) -> tuple[int, Any, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.client.request(method, url, headers=named, data=data) as answer:
            return answer.status, answer.headers, await answer.text() if answer.status != 101 else ""

    async def cookie(self, bearer: str = TOKEN) -> dict[str, str]:
        """As a browser sends it after signing in."""
        status, headers, _ = await self.ask("/v1/login", "POST", Authorization=f"Bearer {bearer}")
        assert status == 204
        return {"Cookie": headers["Set-Cookie"].partition(";")[0]}

    async def ticket(self, **credentials: str) -> str:
        status, _, body = await self.ask("/v1/tickets", "POST", **credentials)
        assert status == 201
        return str(json.loads(body)["ticket"])


def served(
    test: Callable[[Server], Awaitable[None]],
    hosts: list[str] | None = None,
    origins: list[str] | None = None,
    **more: Any,
) -> None:
    async def run() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        access = Access(TOKEN, "127.0.0.1", port, hosts or [], origins or [], **more)
        process: Any = SimpleNamespace(settings=Settings(home=Path("/nowhere")), stopping=asyncio.Event())
        hub: Any = SimpleNamespace(
            clients=set(), strangers=set(), full=True, choked=True, settled=True, stale=True, epoch="",
            regrant=lambda: None, shelf=lambda _: None, follower=SimpleNamespace(head=None, replicas={}),
            processes=dict,
        )  # fmt: skip
        recorder: Any = SimpleNamespace(state="ok")
        application = app.make(process, hub, recorder, access, Tally())
        runner = web.AppRunner(application, access_log=None, auto_decompress=False)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
                await access.tokens.look()
                await test(Server(application, access, port, client))
        finally:
            access.tokens.close()
            await runner.cleanup()

    asyncio.run(run())


@pytest.fixture
def untiring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk of all routes brings more wrong tokens than one moment may."""
    monkeypatch.setattr(door, "FAILURES_BURST", 1_000_000)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = catalogs.open_url(f"sqlite:///{tmp_path}/treewire.db")
    catalog.add_project("/srv/web", 1)
    catalog.add_project("/srv/api", 1)
    yield catalog
    catalog.close()


def routes(application: web.Application) -> list[tuple[str, str]]:
    """Every registered route, with something in place of its parameters."""
    found = []
    for route in application.router.routes():
        assert route.resource is not None
        found.append((route.method, re.sub(r"{\w+}", "x", route.resource.canonical)))
    assert len(found) > 12
    return found


@pytest.mark.usefixtures("untiring")
def test_every_route_but_health_and_readiness_is_closed_to_whoever_has_no_token() -> None:
    async def test(server: Server) -> None:
        ours = {"Origin": server.ours}
        nothing = ({}, ours, {"Sec-Fetch-Site": "same-origin"}, {"Cookie": f"{server.access.cookie}=x", **ours})
        wrong = (
            {"Authorization": f"{scheme} {word}"} for scheme in ("Bearer", "Basic") for word in ("", "wrong", "tw_x")
        )
        for headers in (*nothing, *wrong, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
            for method, path in routes(server.application):
                if path not in OPEN:
                    closed = 404 if path in SIGNED else 401
                    assert await server.status(path, method, **headers) == closed, (method, path, headers)
            assert await server.status("/v1/nothing", **headers) == 401
            for path in OPEN:
                assert await server.status(path, **headers) in (200, 503)

    served(test)


def test_a_path_written_otherwise_opens_nothing_more() -> None:
    async def test(server: Server) -> None:
        for path in (
            "//healthz",
            "/./metrics",
            "/healthz/../metrics",
            "/healthz/",
            "/healthz%2f..%2fmetrics",
            "/HEALTHZ",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.readline()).split()[1] == b"401", path
            writer.close()

    served(test)


@pytest.mark.parametrize(
    "foreign",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.nip.io:{port}"},
        {"Host": "localhost.evil.example:{port}"},
        {"Host": "127.0.0.1:{port}.evil.example"},
        {"Host": "127.0.0.1:{port}@evil.example"},
        {"Host": "0.0.0.0:{port}"},
        {"Host": "[::]:{port}"},
        {"Host": "2130706433:{port}"},
        {"Host": "localhost.:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "evil.example", "X-Forwarded-Host": "127.0.0.1:{port}"},
        {"Host": "evil.example", "Forwarded": "host=127.0.0.1:{port}"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://evil.example:{port}"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1"},
        {"Origin": "http://127.0.0.1:{port}.evil.example"},
        {"Origin": "http://127.0.0.1:{port}/"},
        {"Origin": "http://127.0.0.1:{port} http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "file://"},
        {"Origin": "chrome-extension://abc"},
    ],
    ids=str,
)
def test_every_route_is_closed_to_foreign_hosts_and_origins_whatever_they_know(foreign: dict[str, str]) -> None:
    async def test(server: Server) -> None:
        foreign_here = {name: value.format(port=server.port) for name, value in foreign.items()}
        for known in (BEARER, await server.cookie(), {}):
            for method, path in routes(server.application):
                upgrade = UPGRADE if path == "/v1/stream" else {}
                headers = {**known, **upgrade, **foreign_here}
                assert await server.status(path, method, **headers) == 403, (method, path, headers)

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
        for name, ours in (("Host", f"127.0.0.1:{server.port}"), ("Origin", server.ours)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = [f"GET /page.js HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"]
            if name == "Origin":
                head.append(f"Host: 127.0.0.1:{server.port}\r\n")
            head += [f"{name}: {ours}\r\n{name}: {ours}\r\n\r\n"]
            writer.write("".join(head).encode())
            assert (await reader.readline()).split()[1] in (b"400", b"403"), name
            writer.close()

    served(test)


def test_no_host_or_two_hosts_are_refused_before_a_socket_is_opened() -> None:
    async def test(server: Server) -> None:
        ours = f"Host: 127.0.0.1:{server.port}\r\n"
        upgrade = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        several = (ours * 2, ours + "Host: evil.example\r\n", "Host: evil.example\r\n" + ours)
        for hosts, version in (("", "1.1"), ("", "1.0"), *((one, "1.1") for one in several)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            known = f"{hosts}Authorization: Bearer {TOKEN}\r\n{upgrade}"
            writer.write(f"GET /v1/stream HTTP/{version}\r\n{known}\r\n".encode())
            assert (await reader.readline()).split()[1] in (b"400", b"403"), hosts
            writer.close()

    served(test)


def test_what_proxies_add_changes_nothing() -> None:
    """Who sends it cannot be known: neither does it open, nor does it close."""
    added = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "Forwarded": "for=203.0.113.9;host=evil.example;proto=https",
        "X-Original-URL": "/healthz",
        "X-Rewrite-URL": "/healthz",
        "X-HTTP-Method-Override": "GET",
    }

    async def test(server: Server) -> None:
        assert await server.status(**added) == 401
        assert await server.status(**added, **BEARER) == 200
        _, headers, _ = await server.ask("/v1/login", "POST", **BEARER, **added)
        assert "Secure" not in headers["Set-Cookie"]

    served(test)


# ── cookies ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cookie_counts_only_where_the_browser_says_that_our_page_asks() -> None:
    async def test(server: Server) -> None:
        cookie, ours = await server.cookie(), server.ours
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


def test_a_wrong_token_is_not_made_good_by_a_cookie() -> None:
    async def test(server: Server) -> None:
        cookie = await server.cookie()
        assert await server.status(**cookie, Origin=server.ours, Authorization="Bearer wrong") == 401

    served(test)


def test_a_cookie_that_was_not_given_by_us_is_no_cookie(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        given = (await server.cookie())["Cookie"].partition("=")[2]
        body, _, signature = given.partition(".")
        other = Access("another-token", "127.0.0.1", server.port)
        forged = [
            *("", ".", TOKEN, given[:-1], given.upper(), body, f"{body}.", f".{signature}", f"{body}.{signature}x"),
            f"{body[:-2]}AA.{signature}",
            other._passes.close(door.Pass("", wall_ms() + 1_000_000)),
            await server.ticket(**BEARER),
        ]
        for value in forged:
            cookie = f"{server.access.cookie}={value}"
            assert await server.status(Cookie=cookie, Sec_Fetch_Site="same-origin") == 401, value
        assert await server.status(Cookie=f"{server.access.cookie}={given}", Sec_Fetch_Site="same-origin") == 200

    served(test, run_dir=tmp_path)


def test_signing_in_gives_a_cookie_that_scripts_cannot_read_and_that_is_not_the_token() -> None:
    async def test(server: Server) -> None:
        status, headers, _ = await server.ask("/v1/login", "POST", **BEARER, Origin=server.ours)
        assert status == 204
        [morsel] = SimpleCookie(headers["Set-Cookie"]).values()
        assert morsel["httponly"]
        assert morsel["samesite"] == "Strict"
        assert morsel["path"] == "/"
        assert 0 < int(morsel["max-age"]) <= door.COOKIE_S
        assert TOKEN not in headers["Set-Cookie"]
        pair = headers["Set-Cookie"].partition(";")[0]
        assert await server.status(Cookie=pair, Sec_Fetch_Site="same-origin") == 200
        # A cookie does not prolong itself.
        assert await server.status("/v1/login", "POST", Cookie=pair, Origin=server.ours) == 401

    served(test)


def test_a_page_that_came_over_tls_gets_a_cookie_for_tls_only() -> None:
    async def test(server: Server) -> None:
        _, headers, _ = await server.ask(
            "/v1/login", "POST", **BEARER, Host="board.example", Origin="https://board.example"
        )
        assert "Secure" in headers["Set-Cookie"]

    served(test, hosts=["board.example"])


def test_signing_out_makes_the_browser_forget() -> None:
    async def test(server: Server) -> None:
        cookie = await server.cookie()
        status, headers, _ = await server.ask("/v1/logout", "POST", **cookie, Origin=server.ours)
        assert status == 204
        [morsel] = SimpleCookie(headers["Set-Cookie"]).values()
        assert (morsel.key, morsel.value, morsel["max-age"], morsel["path"]) == (server.access.cookie, "", "0", "/")
        # A foreign page cannot sign anybody out.
        assert await server.status("/v1/logout", "POST", **cookie) == 401

    served(test)


def test_a_cookie_ends_with_the_token_it_was_given_for(catalog: Catalog) -> None:
    now = wall_ms()
    made = catalog.create_token(1, None, expires_ms=now + 600_000)

    async def test(server: Server) -> None:
        status, headers, _ = await server.ask("/v1/login", "POST", Authorization=f"Bearer {made.secret}")
        assert status == 204
        [morsel] = SimpleCookie(headers["Set-Cookie"]).values()
        assert int(morsel["max-age"]) <= 600
        cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}
        assert await server.status(**cookie) == 200
        await asyncio.to_thread(catalog.revoke_token, made.token.id, 2)
        await server.access.tokens.look()
        assert await server.status(**cookie) == 401
        assert await server.status(Authorization=f"Bearer {made.secret}") == 401
        assert await server.status(**BEARER) == 200

    served(test, catalog=lambda: catalog)


def test_a_cookie_ends_by_itself_even_where_the_browser_keeps_it() -> None:
    wall = wall_ms()

    async def test(server: Server) -> None:
        nonlocal wall
        cookie = {**await server.cookie(), "Sec-Fetch-Site": "same-origin"}
        wall += door.COOKIE_S * 1000 - 1
        assert await server.status(**cookie) == 200
        wall += 1
        assert await server.status(**cookie) == 401

    served(test, wall=lambda: wall)


# ── what a token opens ───────────────────────────────────────────────────────────────────────────


def test_what_is_told_of_the_whole_deployment_is_for_those_who_may_see_it_all(catalog: Catalog) -> None:
    some = catalog.create_token(1, ["web"]).secret

    async def test(server: Server) -> None:
        assert await server.status("/metrics", Authorization=f"Bearer {some}") == 403
        assert await server.status("/page.js", Authorization=f"Bearer {some}") == 200
        cookie = await server.cookie(some)
        assert await server.status("/metrics", **cookie, Sec_Fetch_Site="same-origin") == 403

    served(test, catalog=lambda: catalog)


def test_a_token_that_only_reads_reports_nothing(catalog: Catalog) -> None:
    reader = catalog.create_token(1, None, may_write=False).secret

    async def test(server: Server) -> None:
        status, _, body = await server.ask("/v1/events", "POST", Authorization=f"Bearer {reader}")
        assert (status, json.loads(body)["code"]) == (403, "forbidden")
        cookie = await server.cookie(reader)
        assert await server.status("/v1/events", "POST", **cookie, Origin=server.ours) == 403
        assert await server.status("/page.js", Authorization=f"Bearer {reader}") == 200

    served(test, catalog=lambda: catalog)


def test_a_token_made_while_the_gateway_runs_opens_at_once(catalog: Catalog) -> None:
    async def test(server: Server) -> None:
        made = await asyncio.to_thread(catalog.create_token, 1, ["web"])
        assert await server.status(Authorization=f"Bearer {made.secret}") == 200

    served(test, catalog=lambda: catalog)


def test_a_token_counts_only_as_the_one_bearer(catalog: Catalog) -> None:
    made = catalog.create_token(1, None)

    async def test(server: Server) -> None:
        assert await server.status(f"/page.js?token={made.secret}") == 401
        assert await server.status(f"/page.js?access_token={TOKEN}") == 401
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        two = f"Authorization: Bearer {made.secret}\r\n" * 2
        writer.write(f"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{two}\r\n".encode())
        assert (await reader.readline()).split()[1] in (b"400", b"401")
        writer.close()

    served(test, catalog=lambda: catalog)


# ── floods ───────────────────────────────────────────────────────────────────────────────────────


def test_wrong_tokens_are_slowed_down_and_the_right_one_is_not() -> None:
    async def test(server: Server) -> None:
        tries = [await server.ask("/v1/login", "POST", Authorization=f"Bearer {n}") for n in range(FAILURES_BURST + 20)]
        statuses = [status for status, _, _ in tries]
        assert statuses[:FAILURES_BURST] == [401] * FAILURES_BURST
        assert 429 in statuses[FAILURES_BURST:]
        assert next(headers for status, headers, _ in tries if status == 429)["Retry-After"]
        assert await server.status("/v1/login", "POST", **BEARER) == 204
        assert await server.status() == 401  # who brings no token has not tried one

    served(test)


def test_what_is_forgiven_comes_back_with_time_and_never_more_than_a_burst() -> None:
    now = 0.0
    failures = Failures(lambda: now)
    assert [failures.too_many() for _ in range(FAILURES_BURST + 3)] == [False] * FAILURES_BURST + [True] * 3
    now += 2 / door.FAILURES_PER_S
    assert [failures.too_many() for _ in range(3)] == [False, False, True]
    now += 1e6
    assert sum(not failures.too_many() for _ in range(FAILURES_BURST * 3)) == FAILURES_BURST
    assert vars(failures).keys() == {"count", "_clock", "_left", "_at"}


def test_a_packed_body_is_refused_and_never_unpacked() -> None:
    bomb = gzip.compress(bytes(64 << 20))

    async def test(server: Server) -> None:
        for encoding in ("gzip", "deflate", "br", "gzip, gzip", "Identity, gzip"):
            for method, path in routes(server.application):
                if method == "POST":
                    headers = {**BEARER, "Content-Encoding": encoding}
                    assert (await server.ask(path, method, bomb, **headers))[0] == 415, (path, encoding)
        assert await server.status("/v1/events", "POST", **BEARER, Content_Encoding="identity") == 503

    served(test)


def test_headers_without_end_are_cut_off_and_others_are_served_on() -> None:
    async def test(server: Server) -> None:
        for line in (f"X-Long: {'x' * 100_000}\r\n", "".join(f"X-{n}: x\r\n" for n in range(200_000))):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"GET /page.js HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{line}\r\n".encode())
            try:
                await writer.drain()
                assert (await asyncio.wait_for(reader.readline(), 20)).split()[1] in (b"400", b"431")
            except ConnectionError:
                pass
            writer.close()
            assert await server.status(**BEARER) == 200

    served(test)


# ── tickets ──────────────────────────────────────────────────────────────────────────────────────


def test_a_ticket_is_given_to_whoever_is_known_and_to_nobody_else(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        cookie = await server.cookie()
        assert await server.ticket(**BEARER) != await server.ticket(**cookie, Origin=server.ours)
        assert await server.status("/v1/tickets", "POST") == 401
        assert await server.status("/v1/tickets", "POST", Origin=server.ours) == 401
        assert await server.status("/v1/tickets", "POST", **cookie) == 401
        _, headers, body = await server.ask("/v1/tickets", "POST", **BEARER)
        assert headers["Cache-Control"] == "no-store"
        assert json.loads(body)["expires_in_s"] == TICKET_S

    served(test, run_dir=tmp_path)


def test_a_ticket_is_good_once_for_whoever_it_was_given_to(catalog: Catalog, tmp_path: Path) -> None:
    made = catalog.create_token(1, ["web"], may_write=False)

    async def test(server: Server) -> None:
        ticket = await server.ticket(Authorization=f"Bearer {made.secret}")
        caller = server.access.redeem(ticket)
        assert caller is not None
        assert caller.token_id == made.token.id
        assert (caller.may("web"), caller.may("api"), caller.writes) == (True, False, False)
        assert server.access.redeem(ticket) is None
        assert not server.access.expired(ticket)

    served(test, catalog=lambda: catalog, run_dir=tmp_path)


def test_a_ticket_is_no_bearer_and_no_cookie(tmp_path: Path) -> None:
    async def test(server: Server) -> None:
        ticket = await server.ticket(**BEARER)
        assert await server.status(Authorization=f"Bearer {ticket}") == 401
        assert await server.status(Cookie=f"{server.access.cookie}={ticket}", Origin=server.ours) == 401
        assert await server.status(f"/page.js?ticket={ticket}") == 401
        assert server.access.redeem(ticket) is not None

    served(test, run_dir=tmp_path)


def test_a_ticket_of_a_token_that_was_revoked_meanwhile_opens_nothing(catalog: Catalog, tmp_path: Path) -> None:
    made = catalog.create_token(1, ["web"])

    async def test(server: Server) -> None:
        ticket = await server.ticket(Authorization=f"Bearer {made.secret}")
        await asyncio.to_thread(catalog.revoke_token, made.token.id, 2)
        await server.access.tokens.look()
        assert server.access.redeem(ticket) is None

    served(test, catalog=lambda: catalog, run_dir=tmp_path)


def test_each_gateway_redeems_what_another_one_issued_and_only_one_of_all(tmp_path: Path) -> None:
    issuer, *others = (Tickets(TOKEN, tmp_path) for _ in range(5))
    given = [issuer.issue(f"t{n}") for n in range(60)]
    taken: list[str] = []
    start = threading.Barrier(len(others))

    def redeem(gateway: Tickets) -> None:
        start.wait()
        taken.extend(token for ticket in given if (token := gateway.redeem(ticket)) is not None)

    threads = [threading.Thread(target=redeem, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(f"t{n}" for n in range(60))
    assert os.listdir(tmp_path / "tickets") == []


def test_a_ticket_that_comes_too_late_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    now = now_ns()
    gateway = Tickets(TOKEN, tmp_path, lambda: now)
    early, late = gateway.issue("t1"), gateway.issue("t2")
    now += TICKET_S * 1_000_000_000 - 1
    assert gateway.redeem(early) == "t1"
    now += 1
    assert gateway.redeem(late) is None
    assert gateway.expired(late)
    stranger = Tickets("another", tmp_path, lambda: now).issue("t1")
    for never in ("", ".", "x" * 4000, stranger, late[:-1], late + "x", late.upper(), "\udc80", "ü.ü"):
        assert gateway.redeem(never) is None, never
        assert not gateway.expired(never), never


def test_a_ticket_does_not_outlive_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Tickets(TOKEN, tmp_path)
    ticket = gateway.issue("t1")
    monkeypatch.setattr(tickets, "CLOCK", "another-boot:1")
    assert gateway.expired(ticket)
    assert gateway.redeem(ticket) is None


def test_tickets_lie_in_a_private_folder_say_nothing_by_their_names_and_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tickets, "MOST", 5)
    gateway, folder = Tickets(TOKEN, tmp_path), tmp_path / "tickets"
    given = [gateway.issue("t1") for _ in range(5)]
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_bytes() == b""
        assert gateway.redeem(file.name) is None
    with pytest.raises(Full):
        gateway.issue("t1")
    old = time.time() - 10 * TICKET_S
    for file in folder.iterdir():
        os.utime(file, (old, old))
    assert gateway.redeem(gateway.issue("t2")) == "t2"
    assert os.listdir(folder) == []
    assert gateway.redeem(given[0]) is None


def test_where_no_ticket_can_be_made_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "tickets").write_text("in the way")

    async def test(server: Server) -> None:
        status, headers, body = await server.ask("/v1/tickets", "POST", **BEARER)
        assert (status, headers["Retry-After"]) == (503, "2")
        assert str(tmp_path) not in body

    served(test, run_dir=tmp_path)


def test_a_websocket_without_an_origin_needs_the_bearer_and_no_cookie_helps() -> None:
    async def test(server: Server) -> None:
        cookie, stream = await server.cookie(), "/v1/stream"
        assert await server.status(stream, **UPGRADE) == 401
        assert await server.status(stream, **UPGRADE, **cookie) == 401
        assert await server.status(stream, **UPGRADE, **cookie, Sec_Fetch_Site="same-origin") == 401
        assert await server.status(stream, **UPGRADE, **cookie, Origin="http://evil.example") == 403
        assert await server.status(stream, **cookie, Origin=f"http://localhost:{server.port}") == 401
        assert await server.status(stream, **UPGRADE, Origin=server.ours, Authorization="Bearer wrong") == 401

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
