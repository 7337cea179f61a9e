"""Who may come in: one middleware in front of every route.

A local service with a browser beside it has hostile visitors: any web page can send requests to it, and by DNS
rebinding under a name of its own. So, in this order and before anything else happens:

1. The Host must be one of ours.                                     (rebinding)
2. The Origin, where there is one, must be one of ours; ``null`` is none.   (foreign pages, WebSocket hijacking)
3. The caller must have a token, as a bearer, or a cookie that was given for it. The cookie counts only where the
   browser itself says that our own page asks: a same-origin Origin, or Sec-Fetch-Site on a GET without one.
   On a WebSocket only the Origin counts. Where there is an Origin, a WebSocket is let in with nothing at all, as far
   as its hello, which must bring a ticket.
4. The token must open what is asked for. What is told of the deployment as a whole is for those who may see all
   projects; a token that only reads reports nothing. Each route asks `Caller.may` for its project.

Only health and readiness may be asked without a token; a webhook brings a signature instead, which its route checks.
What proxies add (``X-Forwarded-…``) counts for nothing: who sends it cannot be known.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import Struct

from gateway.seal import Seal
from gateway.tickets import TICKET_S, Full, Tickets
from gateway.tokens import Caller, Tokens
from pipeline.bridges.hooks import AGENTS
from pipeline.catalog import Catalog
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.log import FilteringBoundLogger
from pipeline.runtime.place import OperatorError

__all__ = ["Access", "Caller", "Page", "problem", "token_of"]

OPEN: Final = frozenset({"/healthz", "/readyz"})
GITHUB: Final = "/v1/webhooks/github"
SIGNED: Final = frozenset({GITHUB})
WHOLE: Final = frozenset({"/metrics"})
REPORTS: Final = frozenset({"/v1/events", *(f"/v1/events/{agent}" for agent in AGENTS)})
STREAM: Final = "/v1/stream"
LOGIN: Final = "/v1/login"
HTTP_PORT: Final = 80
ANYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104 - to be told from a name
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
REALM: Final = 'Bearer realm="treewire"'
TOKEN_BYTES: Final = 32
TYPES: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
COOKIE_S: Final = 30 * 86_400
FAILURES_BURST: Final = 20
FAILURES_PER_S: Final = 1.0

# ``request["caller"]``: keys with types need a newer aiohttp than we ask for.
warnings.filterwarnings("ignore", category=web.NotAppKeyWarning)


def token_of(path: Path) -> str:
    """The token in this file, which is made if there is none. Raises `OperatorError` if others can read it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    if not path.exists():
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        try:
            os.link(fresh, path)  # of several gateways that start together, one wins whole
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return private_text(path, "token")


def private_text(path: Path, what: str) -> str:
    """What is in this file of a secret. Raises `OperatorError` if others can read it, or nothing is in it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorError(f"cannot read the {what} {path}: {error.strerror}; remove it and start again") from None
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OperatorError(f"the {what} {path} can be read by others: chmod 600 it, or remove it and start again")
        text = file.read().strip()
    if not text:
        raise OperatorError(f"the {what} {path} is empty: remove it and start again")
    return text


def problem(status: int, code: str, message: str, **headers: str) -> web.Response:
    """An error, as every route words it: a code for programs and a sentence for people."""
    body = msgspec.json.encode({"code": code, "message": message})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, body=body, content_type="application/json", headers=named)


class Pass(Struct, frozen=True, array_like=True):
    """What a cookie says: whose it is, and until when."""

    token_id: str
    ends_ms: int


class Failures:
    """How many wrong tokens a moment may bring: one bucket for all, since on one host nobody has an address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = 0
        self._clock = clock
        self._left = float(FAILURES_BURST)
        self._at = clock()

    def too_many(self) -> bool:
        """Count one more. The right token still opens: guessing 256 bits is hopeless, being locked out is not."""
        now = self._clock()
        self._left = min(float(FAILURES_BURST), self._left + (now - self._at) * FAILURES_PER_S)
        self._at = now
        self.count += 1
        if self._left < 1:
            return True
        self._left -= 1
        return False


class Access:
    """The rules above, for one address.

    `catalog` opens the catalog, in a thread: without it only the operator's token opens anything. Tickets lie in
    `run_dir`: without it there are none.
    """

    def __init__(
        self,
        token: str,
        host: str,
        port: int,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        *,
        catalog: Callable[[], Catalog] | None = None,
        run_dir: Path | None = None,
        log: FilteringBoundLogger | None = None,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        own = {name.lower() for name in (*LOOPBACK, *({host} - ANYWHERE))}
        given = {name.lower() for name in hosts}
        # A proxy keeps the name and may leave out the port; without one, browsers leave out the default port only.
        self.hosts = frozenset(
            {f"{name}:{port}" for name in own | given} | given | (own if port == HTTP_PORT else set())
        )
        self.origins = frozenset(
            {f"http://{name}" for name in self.hosts}
            | {f"https://{name}" for name in given}
            | {origin.lower().rstrip("/") for origin in origins}
        )
        # A cookie is sent to every port of its host: its name keeps two deployments apart.
        self.cookie = f"treewire-{port}"
        self.tokens = Tokens(token, catalog, log, wall)
        self.failures = Failures()
        self._tickets = None if run_dir is None else Tickets(token, run_dir)
        self._passes = Seal(token, "cookie", Pass)
        self._wall = wall
        self._sign_in = Page("signin.html")

    # ── for the routes ───────────────────────────────────────────────────────────────────────────

    def watch(self, callback: Callable[[], None]) -> None:
        """Call this in the loop whenever what tokens open has changed: one was made, revoked, expired or narrowed."""
        self.tokens.watch(callback)

    def current(self, token_id: str) -> Caller | None:
        """What this token opens now; ``None`` once it opens nothing any more."""
        return self.tokens.current(token_id)

    def redeem(self, ticket: str) -> Caller | None:
        """Whose ticket it is, the first time and in time; else ``None``. `expired` says whether it came too late."""
        token_id = None if self._tickets is None else self._tickets.redeem(ticket)
        return None if token_id is None else self.current(token_id)

    def expired(self, ticket: str) -> bool:
        """Whether it was a ticket of ours whose time is over."""
        return self._tickets is not None and self._tickets.expired(ticket)

    async def keep(self) -> None:
        """Follow what tokens open, for ever."""
        try:
            await self.tokens.keep()
        finally:
            self.tokens.close()

    def routes(self) -> list[web.RouteDef]:
        """Where a browser signs in and out, and gets its tickets."""
        return [
            web.post(LOGIN, self.login),
            web.post("/v1/logout", self.logout),
            web.post("/v1/tickets", self.ticket),
        ]

    # ── at the door ──────────────────────────────────────────────────────────────────────────────

    def middleware(self) -> Middleware:
        """Sets ``request["caller"]``: ``None`` where none is needed, or a ticket shall bring him."""

        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            request["caller"] = None
            refusal = await self.refusal(request)
            if refusal is not None:
                _protect(refusal)
                return refusal
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = problem(
                    error.status, _slug(error.reason), f"{error.reason}: {request.method} {request.path}"
                )
                if "Allow" in error.headers:
                    response.headers["Allow"] = error.headers["Allow"]
            if not response.prepared:
                _protect(response)
            return response

        return admit

    async def refusal(self, request: web.Request) -> web.Response | None:
        """Why the request is refused; ``None`` if it is not."""
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return problem(403, "forbidden", "this host name is not one of ours: see gateway.allowed_hosts")
        if len(origins) > 1 or (origins and origins[0].lower() not in self.origins):
            return problem(403, "forbidden", "this origin is not one of ours: see gateway.allowed_origins")
        if _route(request) in OPEN | SIGNED:
            return None
        credentials = request.headers.getall("Authorization", [])
        caller = await self._bearer(credentials) if credentials else self._our_page(request, hosts[0], origins)
        if caller is None:
            return self._stranger(request, bool(credentials), bool(origins))
        request["caller"] = caller
        self.tokens.note_use(caller.token_id)
        return _forbidden(request, caller)

    async def _bearer(self, credentials: list[str]) -> Caller | None:
        scheme, _, secret = credentials[0].partition(" ")
        if len(credentials) > 1 or scheme.lower() != "bearer":
            return None
        return await self.tokens.find(secret.strip())

    def _our_page(self, request: web.Request, host: str, origins: list[str]) -> Caller | None:
        given = self._passes.open(request.cookies.get(self.cookie, ""))
        if given is None or self._wall() >= given.ends_ms:
            return None
        if origins:
            ours = origins[0].lower().partition("://")[2] == host.lower()
        elif request.method != "GET" or "Upgrade" in request.headers:
            ours = False
        else:
            site = request.headers.get("Sec-Fetch-Site")
            ours = site == "same-origin" or (site == "none" and request.headers.get("Sec-Fetch-Mode") == "navigate")
        return self.current(given.token_id) if ours else None

    def _stranger(self, request: web.Request, tried: bool, from_page: bool) -> web.Response | None:
        if tried and self.failures.too_many():
            return problem(429, "too_many", "too many wrong tokens; wait a moment", Retry_After="1")
        if tried or not (from_page and _is_stream(request)):
            if _route(request) == "/" and request.method == "GET":
                return self._sign_in.response(401, WWW_Authenticate=REALM)
            return _unauthenticated()
        return None

    # ── signing in and out ───────────────────────────────────────────────────────────────────────

    async def login(self, request: web.Request) -> web.Response:
        """A token for a cookie: what the page does once, so that the token need not stay in it."""
        caller: Caller = request["caller"]
        if "Authorization" not in request.headers:  # a cookie shall not prolong itself
            return _unauthenticated()
        now = self._wall()
        ends_ms = now + COOKIE_S * 1000
        if caller.expires_ms is not None:
            ends_ms = min(ends_ms, caller.expires_ms)
        response = web.Response(status=204)
        response.set_cookie(
            self.cookie,
            self._passes.close(Pass(caller.token_id, ends_ms)),
            max_age=(ends_ms - now) // 1000,
            httponly=True,
            secure=request.headers.get("Origin", "").lower().startswith("https://"),
            samesite="Strict",
            path="/",
        )
        return response

    async def logout(self, _: web.Request) -> web.Response:
        """Make the browser forget its cookie."""
        response = web.Response(status=204)
        response.set_cookie(self.cookie, "", max_age=0, httponly=True, samesite="Strict", path="/")
        return response

    async def ticket(self, request: web.Request) -> web.Response:
        """A ticket that opens one socket, once, as whoever asks for it."""
        caller: Caller = request["caller"]
        try:
            if self._tickets is None:
                raise Full
            text = self._tickets.issue(caller.token_id)
        except (Full, OSError):
            return problem(503, "busy", "no ticket can be made now; try again", Retry_After="2")
        body = msgspec.json.encode({"ticket": text, "expires_in_s": TICKET_S})
        return web.Response(status=201, body=body, content_type="application/json")


def _route(request: web.Request) -> str | None:
    """What it was routed to, however the path was written."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def _is_stream(request: web.Request) -> bool:
    upgrade = request.headers.get("Upgrade", "").lower()
    return request.method == "GET" and _route(request) == STREAM and upgrade == "websocket"


def _forbidden(request: web.Request, caller: Caller) -> web.Response | None:
    if _route(request) in WHOLE and not caller.everywhere:
        return problem(403, "forbidden", "this tells of all projects: use a token that opens them all")
    if _route(request) in REPORTS and not caller.writes:
        return problem(403, "forbidden", "this token only reads: use one that was made without --read-only")
    # What is packed small may be without end.
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        return problem(415, "unsupported", "send the body as it is, without Content-Encoding")
    return None


def _unauthenticated() -> web.Response:
    return problem(401, "unauthenticated", "send a token as `Authorization: Bearer …`", WWW_Authenticate=REALM)


class Page:
    """A file of the page. Whatever is inline in it is named by its hash: nothing else may run."""

    def __init__(self, name: str) -> None:
        self.body = resources.files("gateway").joinpath("web", name).read_bytes()
        self._type = TYPES[name.rpartition(".")[2]]
        scripts, styles = (_hashes(self.body, tag) for tag in (b"script", b"style"))
        self._policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src 'self'{scripts}",
                f"style-src 'self'{styles}",
                "connect-src 'self'",
                "img-src 'self' data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )

    def response(self, status: int = 200, **headers: str) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named["Content-Security-Policy"] = self._policy
        return web.Response(status=status, body=self.body, content_type=self._type, charset="utf-8", headers=named)


def _hashes(body: bytes, tag: bytes) -> str:
    inline = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), body, re.DOTALL)
    return "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in inline)


def _protect(response: web.StreamResponse) -> None:
    headers = response.headers
    headers.setdefault("Cache-Control", "no-store")
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"


def _slug(reason: str) -> str:
    return reason.lower().replace(" ", "_")
