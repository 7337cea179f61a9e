"""Pages of allowed origins may read our answers: what browsers ask before they let them (CORS).

Only origins that the door lets in anyway are answered, each by its name. Cookies never come along: such a page sends
a token, or has a ticket for the stream. So no page gains by this what its origin was not given.
"""

from __future__ import annotations

from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from gateway.access import Access

METHODS: Final = "GET, HEAD, POST"
SENT: Final = "Authorization, Content-Type, If-None-Match, Last-Event-ID"
SHOWN: Final = "ETag, Retry-After, Treewire-Stale"
KEPT_S: Final = 600
PRIVATE: Final = "Access-Control-{}-Private-Network"


class Cors:
    """For the origins and host names of one door."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def middleware(self) -> Middleware:
        """Answers a browser's question whether it may ask; the question itself carries no credentials."""

        @web.middleware
        async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not self._is_preflight(request) or not self._is_allowed(request):
                return await handler(request)
            headers: dict[str, str] = {
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: SENT,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(KEPT_S),
            }
            if request.headers.get(PRIVATE.format("Request")) == "true":
                headers[PRIVATE.format("Allow")] = "true"
            return web.Response(status=204, headers=headers)

        return ask

    async def share(self, request: web.Request, response: web.StreamResponse) -> None:
        """As an answer is about to leave: name the origin that may read it."""
        if self._is_allowed(request):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = SHOWN
            response.headers.add(hdrs.VARY, hdrs.ORIGIN)

    def _is_preflight(self, request: web.Request) -> bool:
        return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers

    def _is_allowed(self, request: web.Request) -> bool:
        hosts, origins = request.headers.getall(hdrs.HOST, []), request.headers.getall(hdrs.ORIGIN, [])
        return (
            len(hosts) == len(origins) == 1
            and hosts[0].lower() in self._access.hosts
            and origins[0].lower() in self._access.origins
        )
