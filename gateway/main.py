"""The gateway: HTTP and WebSocket in front of the pipeline.

Several gateways (``gateway.processes``) listen on one address, and the kernel shares the connections out among them
(SO_REUSEPORT): clients know one URL, and nobody needs a proxy. A single one does not ask for that, so that a port
that is taken is an error and not a port shared with a stranger. With ``gateway.ports = "range"`` each has a port of
its own, counted from the one that is set, for a proxy that shares connections out itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from gateway import app
from gateway.access import LOOPBACK, Access, token_of
from gateway.figures import Figures
from gateway.hub import Hub
from gateway.ingest import Recorder
from gateway.ring import Ring, Send, Unavailable, write_each
from gateway.session import Close
from gateway.socket import FAREWELL_S, Tally
from pipeline import bus, frames
from pipeline.runtime.place import OperatorError
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Gateway
from pipeline.runtime.tick import tick

BACKLOG: Final = 4096
CHECK_S: Final = 3.0
MAX_PORT: Final = 65_535
COLLECT: Final = (10_000, 10, 10)


async def main(process: Process) -> None:
    # A connection is hundreds of objects that stay. By Python's own measure, looking through them all again and again
    # as a crowd comes in took half of what they cost.
    gc.freeze()
    gc.set_threshold(*COLLECT)
    settings = process.settings
    gateway = settings.gateway
    listening = bind(gateway, last_port(settings.url_path), process.index)
    port = listening.getsockname()[1]
    base = port - _offset(gateway, process.index)
    recorder = Recorder(settings, process.log)
    access = Access(
        token_of(settings.token_path),
        gateway.host,
        base,  # a browser's cookie opens each of them
        [*gateway.allowed_hosts, *(f"{name}:{port}" for name in {gateway.host, *LOOPBACK} if port != base)],
        gateway.allowed_origins,
        catalog=recorder.open,
        run_dir=settings.run_dir,
        log=process.log,
    )
    hub = Hub(settings.run_dir, process.name, lambda: recorder.state, gateway.max_sockets, writer(process))
    access.watch(hub.regrant)
    tally = Tally()
    Figures(process, hub, tally, recorder)
    application = app.make(process, hub, recorder, access, tally)
    process.registry.register(application["hooks"])
    process.registry.register(application["webhooks"])
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=FAREWELL_S + 0.5,
        auto_decompress=False,  # what is packed small may be without end
    )
    await runner.setup()
    site = web.SockSite(runner, listening, backlog=BACKLOG)
    await site.start()
    url = address(gateway.host, port)
    if port == base:
        write_whole(settings.url_path, url + "\n")
    process.figures["url"] = url
    if not _is_loopback(gateway.host):
        process.log.warning("listens beyond this host, unencrypted: put a TLS proxy in front", host=gateway.host)
    process.log.info("listening", url=url)
    process.spawn(hub.sweeping(gateway.heartbeat_ms), "sweep")
    process.spawn(hub.interest(), "interest")
    process.spawn(checking(recorder), "catalog")
    process.spawn(access.keep(), "access")

    await process.stopping.wait()

    await site.stop()
    for client in [*hub.clients]:
        client.close(Close(frames.SHUTTING_DOWN, "shutting down"))
    await runner.cleanup()
    await parted(hub)
    await process.cancel_tasks()  # whoever only reads the catalog lets go of it first: the last takes in its log
    await asyncio.to_thread(recorder.close)
    hub.close()
    bus.close()


async def parted(hub: Hub) -> None:
    """Until all have left; whoever does not answer a farewell is cut off by then."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FAREWELL_S + 0.5):
            while hub.clients:
                hub.left.clear()
                await hub.left.wait()


def writer(process: Process) -> Send:
    """How a frame gets to many sockets."""
    why = "gateway.io_uring is off"
    if process.settings.gateway.io_uring:
        try:
            ring = Ring.open()
        except Unavailable as error:
            why = str(error)
        else:
            process.figures["writer"] = "io_uring"
            return ring.send
    process.log.info("frames are written one by one", why=why)
    process.figures["writer"] = "write"
    return write_each


async def checking(recorder: Recorder) -> None:
    """See again and again whether the catalog can be used: with no events nobody else would notice."""
    while True:
        await asyncio.to_thread(recorder.check)
        await tick(CHECK_S)


def last_port(url_path: Path) -> int:
    """The port of the run before, 0 if there was none: clients that are still trying it find us again."""
    try:
        return urlsplit(url_path.read_text().strip()).port or 0
    except (OSError, ValueError):
        return 0


def _offset(gateway: Gateway, index: int) -> int:
    """How far the port of this one lies from the one that is set."""
    return index if gateway.ports == "range" and gateway.port != 0 else 0


def bind(gateway: Gateway, last: int = 0, index: int = 0) -> socket.socket:
    """Take the address; where the port may be any, the `last` one if it is free. Raises `OperatorError`."""
    if gateway.port == 0 and gateway.processes == 1 and last:
        try:
            return bind(msgspec.structs.replace(gateway, port=last))
        except OperatorError:
            pass
    if gateway.port == 0 and gateway.processes > 1:
        raise OperatorError("gateway.port = 0 picks a port for one process: set a port, or gateway.processes = 1")
    port = gateway.port + _offset(gateway, index)
    if port > MAX_PORT:
        raise OperatorError(f"gateway.port = {gateway.port} leaves no port for process {index}: set a lower one")
    try:
        found = socket.getaddrinfo(gateway.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OperatorError(f"gateway.host = {gateway.host!r} is no address: {error.strerror}") from None
    family, kind, protocol, _, where = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if gateway.processes > 1 and gateway.ports == "shared":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(where)
        # Taken now, not when the first request is served: two that reuse an address may both bind it.
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise OperatorError(
            f"cannot listen on {gateway.host}:{port}: {error.strerror}; set gateway.port to a free one"
        ) from None
    listening.setblocking(False)
    return listening


def address(host: str, port: int) -> str:
    """Where a browser on this host finds it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}/"


def write_whole(path: Path, text: str) -> None:
    """Readers see the former content or this."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_text(text)
    os.replace(fresh, path)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
