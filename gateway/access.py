"""Who may come in: one middleware in front of every route.

A local service with a browser beside it has hostile visitors: any web page can send requests to it, and by DNS
rebinding under a name of its own. So, in this order and before anything else happens:

1. The Host must be one of ours.                                     (rebinding)
2. The Origin, where there is one, must be one of ours; ``null`` is none.   (foreign pages, WebSocket hijacking)
3. The caller must have the token, as a bearer, or a cookie that was given for it. The cookie counts only where the
   browser itself says that our own page asks: a same-origin Origin, or Sec-Fetch-Site on a GET without one.
   On a WebSocket only the Origin counts.

Only health and readiness may be asked without the token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pipeline.runtime.place import OperatorError

OPEN: Final = frozenset({"/healthz", "/readyz"})
HTTP_PORT: Final = 80
ANYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104 - to be told from a name
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
REALM: Final = 'Bearer realm="treewire"'
TOKEN_BYTES: Final = 32


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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorError(f"cannot read the token {path}: {error.strerror}; remove it and start again") from None
    with os.fdopen(descriptor) as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise OperatorError(f"the token {path} can be read by others: chmod 600 it, or remove it and start again")
        token = file.read().strip()
    if not token:
        raise OperatorError(f"the token {path} is empty: remove it and start again")
    return token


def problem(status: int, code: str, message: str, **headers: str) -> web.Response:
    """An error, as every route words it: a code for programs and a sentence for people."""
    body = msgspec.json.encode({"code": code, "message": message})
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, body=body, content_type="application/json", headers=named)


class Access:
    """The rules above, for one address."""

    def __init__(
        self, token: str, host: str, port: int, hosts: Iterable[str] = (), origins: Iterable[str] = ()
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
        self._token = token.encode()
        self._pass = hmac.new(self._token, b"treewire browser cookie", hashlib.sha256).hexdigest()
        self._sign_in = Page("signin.html")

    def middleware(self) -> Middleware:
        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            refusal = self.refusal(request)
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

    def refusal(self, request: web.Request) -> web.Response | None:
        """Why the request is refused; ``None`` if it is not."""
        hosts, origins = request.headers.getall("Host", []), request.headers.getall("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.hosts:
            return problem(403, "forbidden", "this host name is not one of ours: see gateway.allowed_hosts")
        if len(origins) > 1 or (origins and origins[0].lower() not in self.origins):
            return problem(403, "forbidden", "this origin is not one of ours: see gateway.allowed_origins")
        if request.path in OPEN or self._is_bearer(request) or self._is_our_page(request, hosts[0], origins):
            return None
        if request.path == "/" and request.method == "GET":
            return self._sign_in.response(401, WWW_Authenticate=REALM)
        return problem(401, "unauthenticated", "send the token as `Authorization: Bearer …`", WWW_Authenticate=REALM)

    def _is_bearer(self, request: web.Request) -> bool:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_bytes(value.strip()), self._token)

    def _is_our_page(self, request: web.Request, host: str, origins: list[str]) -> bool:
        if not hmac.compare_digest(_bytes(request.cookies.get(self.cookie, "")), self._pass.encode()):
            return False
        if origins:
            return origins[0].lower().partition("://")[2] == host.lower()
        if request.method != "GET" or "Upgrade" in request.headers:
            return False
        site = request.headers.get("Sec-Fetch-Site")
        return site == "same-origin" or (site == "none" and request.headers.get("Sec-Fetch-Mode") == "navigate")

    async def login(self, request: web.Request) -> web.Response:
        """The token for a cookie: what the page does once, so that the token need not stay in it."""
        if not self._is_bearer(request):
            return problem(
                401, "unauthenticated", "send the token as `Authorization: Bearer …`", WWW_Authenticate=REALM
            )
        response = web.Response(status=204)
        response.set_cookie(self.cookie, self._pass, httponly=True, samesite="Strict", path="/")
        return response


class Page:
    """A file of the page. Whatever is inline in it is named by its hash: nothing else may run."""

    def __init__(self, name: str) -> None:
        self.body = resources.files("gateway").joinpath("web", name).read_bytes()
        self._type = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]
        scripts, styles = (_hashes(self.body, tag) for tag in (b"script", b"style"))
        self._policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src 'self'{scripts}",
                f"style-src 'self'{styles}",
                "connect-src 'self'",
                "img-src data:",
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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
