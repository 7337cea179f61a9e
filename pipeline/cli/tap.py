"""`treewire tap` and `treewire replay`: watch the flow, record it, rebuild from a recording."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from pipeline import wire
from pipeline.cli.deployment import hears, not_running
from pipeline.cli.explain import check_group
from pipeline.runtime.settings import Settings
from pipeline.tap import Filter, Line, RecordingError, Replay, read, record, watch

KINDS = ("look", "verdict", "delta", "job")


@click.command()
@click.option("--project", default="", help="Only this project (id, name or path).")
@click.option("--workspace", default="", help="Only this workspace (id, name or path).")
@click.option("--group", default="", help="Only this group: life, git, pr, …, session:<id>.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Only this kind; may be repeated. A look is shown with its verdict, whichever of the two is asked for.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option(
    "--record", "recording", type=click.Path(dir_okay=False, path_type=Path), help="Also write everything to FILE."
)
@click.pass_obj
def tap(
    settings: Settings,
    project: str,
    workspace: str,
    group: str,
    kinds: tuple[str, ...],
    as_json: bool,
    recording: Path | None,
) -> None:
    """Watch every look with its verdict, every delta and every job, as they happen.

    A recording always holds the whole flow, whatever the filters show. Watching costs the pipeline next to nothing: a
    tap that does not keep up misses messages, and nobody waits for it.
    """
    check_group(group, "--group")
    if not hears(settings):
        raise not_running(settings)
    wanted = Filter(*_meant(settings, project, workspace), group, frozenset(kinds))
    render = _json if as_json else _text

    def show(message: Line) -> None:
        if not isinstance(message, wire.Image) and wanted.wants(message):
            _print(render(message))

    click.echo("watching; Ctrl-C ends it", err=True)
    if recording is None:
        _until_interrupted(lambda stop: watch(settings.run_dir, show, stop=stop))
        return
    try:
        descriptor = os.open(recording, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise click.ClickException(f"cannot record into {recording}: {error.strerror}") from error
    with open(descriptor, "wb", buffering=0) as file:  # a recorder that is killed leaves what it saw
        _until_interrupted(lambda stop: record(settings.run_dir, file, show, stop=stop))
    click.echo(f"recorded {recording.stat().st_size} bytes; check it with: treewire replay {recording}", err=True)


def _meant(settings: Settings, project: str, workspace: str) -> tuple[str, str]:
    """Their ids. A filter that nothing could ever pass is an error and no silence."""
    if not project and not workspace:
        return "", ""
    from pipeline import catalog as catalogs
    from pipeline.cli import find

    try:
        catalog = catalogs.open(settings)
        try:
            return (
                find.project(catalog, project).id if project else "",
                find.workspace(catalog, workspace).id if workspace else "",
            )
        finally:
            catalog.close()
    except catalogs.CatalogUnavailable as error:
        click.echo(f"taking the names as ids: {error}", err=True)
        return project, workspace


def _until_interrupted(work: Callable[[asyncio.Event], Any]) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            asyncio.get_running_loop().add_signal_handler(signum, stop.set)
        await work(stop)

    asyncio.run(run())


def _print(line: str) -> None:
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


def _json(message: wire.Tap) -> str:
    return msgspec.json.encode(message).decode()


def _text(message: wire.Tap) -> str:
    match message:
        case wire.Ruled():
            look = message.look
            shown = "gone" if look.value is None else _fields(msgspec.structs.asdict(look.value))
            took = (look.stamp.ended - look.stamp.began) / 1e6
            read_in = f" read in {took:.1f} ms" if took else ""
            who = look.producer or look.source
            return (
                f"{_clock(message.wall_ms)} look    {look.workspace} {look.group} "
                f"{message.verdict}: {message.cause} [{who}{read_in}] {shown}"
            )
        case wire.Counted():
            held = " HELD: waits for a second census" if message.held else ""
            return (
                f"{_clock(message.wall_ms)} census  {message.looks} looks, drift {message.drift or 'none'}, "
                f"buried {message.buried or 'none'}{held}"
            )
        case wire.Delta():
            return (
                f"{_clock()} delta   {message.project} {message.from_}→{message.to} "
                f"{msgspec.json.encode(message.patch).decode()}"
            )
        case wire.Gone():
            return f"{_clock()} delta   {message.project} gone"
        case wire.JobEvent():
            took_ms = f" in {message.took_ms} ms" if message.took_ms else ""
            by = f" by {message.worker}" if message.worker else ""
            return f"{_clock(message.wall_ms)} job     {message.workspace} {message.event}{by}{took_ms}: {message.why}"
        case _:
            return ""


def _fields(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)


def _clock(wall_ms: int | None = None) -> str:
    seconds = time.time() if wall_ms is None else wall_ms / 1000
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}"


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--at", "at", metavar="PROJECT:VERSION", help="Stop there and print the project's state.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def replay(file: Path, at: str | None, as_json: bool) -> None:
    """Rebuild the state from a recording and check every hash in it. Exits with 1 if one does not match."""
    project, version = _place(at)
    replayed = Replay()
    lines = 0
    found: dict[str, Any] | None = None
    try:
        for message in read(file):
            lines += 1
            replayed.take(message)
            if project and project in replayed.ledgers and replayed.ledgers[project][1].version >= version:
                ledger = replayed.ledgers[project][1]
                found = {"project": project, "version": ledger.version, "hash": ledger.hash(), "state": ledger.state()}
                break
    except RecordingError as error:
        raise click.ClickException(str(error)) from error
    if project:
        if found is None:
            raise click.ClickException(f"the recording does not reach version {version} of {project}")
        if found["version"] != version:
            raise click.ClickException(
                f"the recording does not hold version {version} of {project}; the next one in it is {found['version']}"
            )
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    result = {
        "lines": lines,
        "looks": replayed.looks,
        "deltas": replayed.deltas,
        "hashes_checked": replayed.hashes,
        "gaps": replayed.gaps,
        "mismatches": replayed.mismatches,
        "projects": {
            name: {"epoch": epoch, "version": ledger.version, "hash": ledger.hash(), "workspaces": len(ledger.entries)}
            for name, (epoch, ledger) in replayed.ledgers.items()
        },
    }
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(f"{lines} lines: {replayed.looks} looks, {replayed.deltas} deltas, {replayed.gaps} gaps")
        for name, (_, ledger) in replayed.ledgers.items():
            click.echo(f"  {name}: version {ledger.version}, {len(ledger.entries)} workspaces, hash {ledger.hash()}")
        verdict = f"{len(replayed.mismatches)} DO NOT MATCH" if replayed.mismatches else "all match"
        click.echo(f"{replayed.hashes} hashes checked: {verdict}")
    if replayed.mismatches:
        with contextlib.suppress(BrokenPipeError):
            click.echo("\n".join(replayed.mismatches), err=True)
        sys.exit(1)


def _place(at: str | None) -> tuple[str, int]:
    if at is None:
        return "", 0
    project, colon, version = at.rpartition(":")
    if not colon or not project or not version.isdigit():
        raise click.BadParameter("say it as PROJECT:VERSION, for example web:412", param_hint="--at")
    return project, int(version)
