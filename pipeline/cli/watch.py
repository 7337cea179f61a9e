"""`treewire watch`: what a client of the gateway sees, as a board or as lines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import click
import msgspec

from pipeline import catalog as catalogs
from pipeline.catalog import CatalogUnavailable
from pipeline.cli.board.words import printable
from pipeline.cli.deployment import not_running
from pipeline.runtime.settings import Settings

_T = TypeVar("_T")
_SHOWN = ("files", "insertions", "deletions", "ahead", "behind")


@click.command()
@click.argument("project", default="")
@click.option("--plain", is_flag=True, help="Lines, also where there is a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--bell", is_flag=True, help="On the board: ring when somebody has come to need you (key b).")
@click.option("--url", default="", help="The gateway's address, if it is not this home's own.")
@click.pass_obj
def watch(settings: Settings, project: str, plain: bool, as_json: bool, bell: bool, url: str) -> None:
    """Show PROJECT (id, name or path), or all projects, as a client of the gateway sees them, until q or Ctrl-C.

    On a terminal this is the board: who needs you, what works, waits and is done; ? tells its keys. It needs the extra:
    pip install 'treewire[watch]'.

    Elsewhere, and with --plain, each change is a line, which tells where the stream stands: connecting, loading, live,
    stale (the server, or what it follows, is not heard), degraded, gone. A version with a check mark is proven: its
    hash equals the server's. It reconnects by itself. The token is the home's.
    """
    from pipeline.cli import find

    on_board = not (plain or as_json) and _has_terminal()
    if on_board and find_spec("textual") is None:
        click.echo("The board needs one more package: pip install 'treewire[watch]'. Until then, lines:", err=True)
        on_board = False
    try:
        token = settings.token_path.read_text().strip()
        address = url or settings.url_path.read_text().strip()
    except FileNotFoundError:
        raise not_running(settings) from None
    # Another gateway's projects are not in this home's catalog.
    if not project and not on_board:
        project = _only_project(settings, url)
    id_, unknown = (project, None) if url or not project else find.id_of(settings, find.project, project)
    if on_board:
        from pipeline.cli.board import app

        gone = _valid(lambda: app.show(address, token, id_, bell))
        if gone:
            raise unknown or _gone(gone)
        return
    client = import_module("gateway.client")
    show = _json if as_json else _text
    if not as_json:
        click.echo("watching; Ctrl-C ends it", err=True)
    try:
        over = _valid(lambda: asyncio.run(_follow(client.subscribe(address, id_, token=token), show)))
    except client.Refused as error:
        raise click.ClickException(str(error)) from error
    if over:
        raise unknown or _gone(id_)


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _only_project(settings: Settings, url: str) -> str:
    """The one that lines can be of without saying so."""
    known: list[str] = []
    with contextlib.suppress(CatalogUnavailable):
        if not url:
            with contextlib.closing(catalogs.open(settings)) as catalog:
                known = [project.id for project in catalog.projects()]
    if len(known) == 1:
        return known[0]
    there = f": there are {', '.join(known)}" if known else ""
    raise click.UsageError(f"Lines are of one project; say which{there}.")


def _valid(follow: Callable[[], _T]) -> _T:
    try:
        return follow()
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from error


def _gone(project: str) -> click.ClickException:
    return click.ClickException(
        f"the project {project!r} is not there any more: `treewire project list` shows those there are"
    )


async def _follow(changes: Any, show: Callable[[Any], list[str]]) -> bool:
    """Print all changes. True if the project is gone, false if the user wants no more."""
    task = asyncio.current_task()
    assert task is not None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        asyncio.get_running_loop().add_signal_handler(signum, stop)
    try:
        async with contextlib.aclosing(changes):
            async for change in changes:
                _print(show(change))
    except asyncio.CancelledError:
        if not stopped:
            raise
        return False
    return True


def _print(lines: list[str]) -> None:
    try:
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


def _json(change: Any) -> list[str]:
    held = change.workspaces or {}
    known = change.workspaces is not None
    told = {
        "project": change.project,
        "kind": change.kind,
        "state": change.state,
        "epoch": change.epoch if known else None,
        "version": change.version if known else None,
        "hash": change.hash if known else None,
        "verified": change.is_verified,
        "complete": change.complete,
        "health": change.health,
        "workspaces": len(held) if known else None,
        "changed": {name: held.get(name) for name in sorted(change.changed)},
    }
    return [msgspec.json.encode(told).decode()]


def _text(change: Any) -> list[str]:
    now = time.time()
    clock = time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
    proven = "✓" if change.is_verified else " "
    version = "" if change.workspaces is None else str(change.version)
    head = f"{clock} {change.state:<10} {version:>6}{proven}"
    held = change.workspaces or {}
    if change.kind in ("status", "verified"):
        bad = ", ".join(f"{part} {state}" for part, state in change.health.items() if state != "ok")
        return [f"{head} {len(held)} workspaces {bad}".rstrip()] if change.workspaces is not None else [head.rstrip()]
    return [printable(f"{head} {_entry(name, held.get(name))}") for name in sorted(change.changed)] or [
        f"{head} no workspaces"
    ]


def _entry(name: str, entry: Any) -> str:
    if entry is None:
        return f"{name} gone"
    life, git = entry.get("life", {}), entry.get("git", {})
    counts = " ".join(f"{field} {git[field]}" for field in _SHOWN if git.get(field))
    code = str(entry.get("status", {}).get("code", "unknown")).replace("_", " ")
    return f"{life.get('name', name)}: {code} {counts}".rstrip()
