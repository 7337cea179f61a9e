"""The routes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from gateway import public
from gateway.access import Access, Page, problem
from gateway.hub import Away, Hub
from gateway.ingest import MAX_BYTES, RETRY_AFTER, Recorder, answer, busy, handler
from gateway.socket import Socket, Tally
from pipeline.catalog import CatalogUnavailable, Project
from pipeline.runtime import metrics
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.process import Process

MAX_SOCKETS: Final = 500
MAX_STRANGERS: Final = 32
PAGES: Final = {"/": "index.html", "/page.js": "page.js", "/client.js": "client.js", "/page.css": "page.css"}


def make(process: Process, hub: Hub, recorder: Recorder, access: Access, tally: Tally) -> web.Application:
    """The application: every route behind one middleware."""
    routes = Routes(process, hub, recorder, tally)
    app = web.Application(middlewares=[access.middleware()], client_max_size=MAX_BYTES)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    app.router.add_get("/metrics", routes.metrics)
    app.router.add_post("/v1/login", access.login)
    app.router.add_post("/v1/events", handler(recorder, hub))
    app.router.add_get("/v1/stream", routes.stream, allow_head=False)
    app.router.add_get("/v1/projects", routes.projects)
    app.router.add_get("/v1/projects/{project}/snapshot", routes.snapshot)
    app.router.add_get("/v1/projects/{project}/workspaces/{workspace}/explain", routes.explain)
    for path, name in PAGES.items():
        app.router.add_get(path, _page(Page(name)))
    return app


class Routes:
    def __init__(self, process: Process, hub: Hub, recorder: Recorder, tally: Tally) -> None:
        self._process, self._hub, self._recorder, self._tally = process, hub, recorder, tally
        self._heartbeat_ms = process.settings.gateway.heartbeat_ms
        self._send_buffer = process.settings.gateway.send_buffer

    # ── for operators ────────────────────────────────────────────────────────────────────────────

    async def healthz(self, _: web.Request) -> web.Response:
        """That the event loop turns."""
        return answer({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether there is something true to show; and how each part does that it depends on.

        Only the aggregator and a census are needed to serve what is known; the rest makes it fresh.
        """
        hub = self._hub
        head = hub.follower.head
        parts: dict[str, Any] = {
            "aggregator": {"state": "ok" if not hub.stale else "stale" if head else "away", "needed": True},
            "epoch": {"state": "ok" if hub.epoch else "away", "name": hub.epoch, "needed": True},
            "census": {"state": "ok" if hub.settled else "loading", "needed": True},
            "catalog": {"state": self._recorder.state, "needed": False},
            **{part: {"state": state, "needed": False} for part, state in hub.processes().items()},
        }
        ready = all(part["state"] == "ok" for part in parts.values() if part["needed"])
        degraded = [name for name, part in parts.items() if part["state"] != "ok"]
        body = {"ready": ready, "degraded": degraded, "parts": parts}
        response = answer(body, 200 if ready else 503)
        if not ready:
            response.headers["Retry-After"] = RETRY_AFTER
        return response

    async def metrics(self, _: web.Request) -> web.Response:
        run_dir = self._process.settings.run_dir

        def gather() -> bytes:
            metrics.write(self._process.registry, run_dir, self._process.name)
            return metrics.merged(run_dir)

        return web.Response(body=gather(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    # ── for clients ──────────────────────────────────────────────────────────────────────────────

    async def stream(self, request: web.Request) -> web.StreamResponse:
        clients = self._hub.clients
        if len(clients) >= MAX_SOCKETS:
            return busy("too many sockets are open; try again later")
        if sum(not client.session.greeted for client in clients) >= MAX_STRANGERS:
            return busy("too many sockets have not said hello yet; try again")
        if self._process.stopping.is_set():
            return busy("shutting down; try again")
        client = Socket(self._hub, self._tally, self._heartbeat_ms, request)
        return await client.run(request, self._send_buffer)

    async def projects(self, _: web.Request) -> web.Response:
        """Projects with their names, as far as the catalog answers, and how far each has got here."""
        hub = self._hub
        named: dict[str, Project] = {}
        try:
            named = {project.id: project for project in await asyncio.to_thread(self._read_projects)}
        except CatalogUnavailable:
            pass  # what runs is shown all the same
        told = []
        for id_ in sorted(named.keys() | hub.follower.replicas.keys()):
            shelf = hub.shelf(id_)
            shown = shelf if shelf is not None and shelf.loaded else None
            told.append(
                {
                    "id": id_,
                    "name": named[id_].name if id_ in named else id_,
                    "ready": shown is not None,
                    "epoch": shown and shown.epoch,
                    "version": shown and shown.version,
                    "workspaces": shown and shown.size,
                }
            )
        return answer({"projects": told, "settled": hub.settled, "stale": hub.stale})

    async def snapshot(self, request: web.Request) -> web.Response:
        hub = self._hub
        shelf = hub.shelf(request.match_info["project"])
        if shelf is None and hub.settled:
            return _no_project()
        if shelf is None or not shelf.loaded:
            return problem(503, "loading", "the first census is not complete; try again", Retry_After="1")
        tag = f'"{shelf.epoch}.{shelf.version}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        asked = request.headers.get("If-None-Match", "")
        if any(one.strip().removeprefix("W/") in (tag, "*") for one in asked.split(",")):
            return web.Response(status=304, headers=headers)
        return web.Response(body=shelf.state(), content_type="application/json", headers=headers)

    async def explain(self, request: web.Request) -> web.Response:
        """Why a workspace's values are what they are, in public terms."""
        project, workspace = request.match_info["project"], request.match_info["workspace"]
        if self._hub.shelf(project) is None:
            return _no_project()
        try:
            found = await self._hub.explain(workspace, request.query.get("group", ""))
        except Away:
            return busy("the aggregator does not answer; try again")
        if found is None or found.project != project:
            return problem(404, "not_found", "the project has no such workspace")
        return answer(public.explained(found, now_ns(), CLOCK))

    def _read_projects(self) -> list[Project]:
        return self._recorder.open().projects()


def _no_project() -> web.Response:
    return problem(404, "not_found", "there is no such project, or you may not see it")


def _page(page: Page) -> Any:
    async def get(_: web.Request) -> web.Response:
        return page.response()

    return get
