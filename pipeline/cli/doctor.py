"""`treewire doctor`: is this host fit, and is what lies in the home in order? Looks only, and changes nothing."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click
import msgspec
from msgspec import Struct

from pipeline.cli import deployment
from pipeline.cli.up import port_is_free
from pipeline.runtime import landlock, spawn
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.place import fits_sockets
from pipeline.runtime.settings import Settings

_OLDEST_PYTHON = (3, 11)
_OLDEST_GIT = (2, 25)
_ENOUGH_WATCHES_PER_WORKTREE = 3
_ENOUGH_INSTANCES = 64
_ENOUGH_DESCRIPTORS = 2048
_ENOUGH_DISK = 200 * 2**20


class Finding(Struct):
    """One check's outcome; ``remedy`` says what to do unless it is ok."""

    check: str
    level: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check that this host and this home are fit to run treewire, and say what to do where they are not.

    Exit code: 0 nothing fails (warnings are allowed), 1 something does.
    """
    findings = examine(ctx.obj)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings), indent=2).decode())
    else:
        for finding in findings:
            click.echo(f"{finding.level:4}  {finding.check}: {finding.found}")
            if finding.remedy:
                click.echo(f"      → {finding.remedy}")
    ctx.exit(int(any(finding.level == "fail" for finding in findings)))


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which one would mend things."""
    findings: list[Finding] = []
    for check in CHECKS:
        findings.extend(check(settings))
    return findings


def _python(_: Settings) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= _OLDEST_PYTHON:
        yield Finding("python", "ok", found)
    else:
        yield Finding("python", "fail", found, "install Python 3.11 or newer")


def _git(_: Settings) -> Iterator[Finding]:
    git = shutil.which("git")
    if git is None:
        yield Finding("git", "fail", "not on PATH", "install git")
        return
    try:
        said = subprocess.run([git, "--version"], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("git", "fail", f"{git} does not run: {error}", "install git again")
        return
    numbers = re.search(r"(\d+)\.(\d+)", said)
    if numbers and (int(numbers[1]), int(numbers[2])) >= _OLDEST_GIT:
        yield Finding("git", "ok", said.removeprefix("git version "))
    else:
        yield Finding("git", "fail", said, f"install git {_OLDEST_GIT[0]}.{_OLDEST_GIT[1]} or newer")


def _wall(_: Settings) -> Iterator[Finding]:
    if why := spawn.wall():
        remedy = "git is run all the same, and its closed environment has to hold alone"
        yield Finding("landlock", "warn", why, remedy)
    else:
        found = landlock.version()
        network = "" if landlock.rights(found).network else ", but may use the network"
        yield Finding("landlock", "ok", f"version {found}: git runs nothing, writes only in the cache{network}")
    if shutil.which("setpriv") is None:
        remedy = "install util-linux; without it a git that hangs outlives a worker that was killed"
        yield Finding("setpriv", "warn", "not on PATH", remedy)


def _home(settings: Settings) -> Iterator[Finding]:
    for name, path in (("home", settings.home), ("run directory", settings.run_dir)):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            yield Finding(name, "ok", f"{path} will be made by `treewire up`")
            continue
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISDIR(found.st_mode):
            yield Finding(name, "fail", f"{path} is not a directory", "remove it or choose another --home")
        elif found.st_uid != os.getuid():
            yield Finding(name, "fail", f"{path} belongs to uid {found.st_uid}", "choose another --home")
        elif mode != 0o700:
            yield Finding(name, "warn", f"{path} has mode {mode:04o}", f"chmod 700 {path}; `treewire up` does it too")
        else:
            yield Finding(name, "ok", str(path))
    if not fits_sockets(settings.home / "run"):
        yield Finding(
            "socket names", "ok", f"too long in {settings.home}, therefore the run directory is {settings.run_dir}"
        )
    here = next(place for place in (settings.home, *settings.home.parents) if place.exists())
    free = shutil.disk_usage(here).free
    if free < _ENOUGH_DISK:
        yield Finding("disk", "warn", f"{free / 2**20:.0f} MB free in {here}", "make room before the logs need it")
    else:
        yield Finding("disk", "ok", f"{free / 2**30:.1f} GB free")


def _token(settings: Settings) -> Iterator[Finding]:
    path = settings.token_path
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        yield Finding("token", "ok", "will be made by `treewire up`")
        return
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size == 0:
        yield Finding("token", "fail", f"{path} is not a token file of yours", "remove it, then `treewire up`")
    elif mode & 0o077:
        yield Finding("token", "fail", f"others can read {path} ({mode:04o})", "remove it, then `treewire up`")
    else:
        yield Finding("token", "ok", f"{path} ({mode:04o})")


def _github(settings: Settings) -> Iterator[Finding]:
    if settings.sources.github:
        import asyncio

        from pipeline.sources.github import token

        host = settings.github.host
        try:
            token.endpoint(host, settings.github.api)
        except ValueError as error:
            yield Finding(
                "github", "fail", str(error), "correct it in treewire.toml of the home, or in the environment"
            )
        else:
            known = asyncio.run(token.token(host)) != ""
            hint = "no token, so nothing is asked; to see pull requests set GITHUB_TOKEN, or run `gh auth login`"
            yield Finding("github", "ok", f"there is a token for {host}" if known else hint)
    secret = settings.webhook_secret_path
    if secret.exists() and (mode := stat.S_IMODE(os.lstat(secret).st_mode)) & 0o077:
        yield Finding("webhooks", "fail", f"others can read {secret} ({mode:04o})", f"chmod 600 {secret}")


def _database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(settings.database_url)
    except ArgumentError:
        yield Finding("database", "fail", "database.url cannot be understood", "write it as sqlite:////absolute/path")
        return
    if url.get_backend_name() != "sqlite":
        yield from _server(url.render_as_string(), settings.database_url)
        return
    path = Path(url.database or "")
    if not path.exists():
        yield Finding("database", "ok", f"{path} will be made by `treewire up`")
        return
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        yield Finding("database", "fail", f"{path}: {error}", "put a backup in its place, or remove it to begin anew")
        return
    if sound != "ok":
        yield Finding("database", "fail", f"{path}: {sound}", "put a backup in its place, or remove it to begin anew")
    elif mode != "wal":
        yield Finding("database", "warn", f"{path} is in {mode} mode", "restart treewire, which sets WAL mode")
    else:
        yield Finding("database", "ok", f"{path} ({mode})")


def _server(shown: str, url: str) -> Iterator[Finding]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(url)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        why = str(error).partition("\n")[0]
        yield Finding("database", "fail", f"{shown}: {why}", "start the server, or mend database.url")
        return
    yield Finding("database", "ok", shown)


def _inotify(settings: Settings) -> Iterator[Finding]:
    for name, enough in (
        ("max_user_watches", settings.git.max_watches * _ENOUGH_WATCHES_PER_WORKTREE),
        ("max_user_instances", _ENOUGH_INSTANCES),
    ):
        try:
            value = int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
        except (OSError, ValueError):
            yield Finding(f"inotify {name}", "warn", "unknown", "without inotify, git is looked at by cadence alone")
            continue
        if value < enough:
            remedy = f"sysctl fs.inotify.{name}={enough}; until then what is not watched is looked at by cadence"
            yield Finding(f"inotify {name}", "warn", str(value), remedy)
        else:
            yield Finding(f"inotify {name}", "ok", str(value))


def _descriptors(_: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH_DESCRIPTORS:
        remedy = f"raise the hard limit (ulimit -Hn) to {_ENOUGH_DESCRIPTORS} for many clients"
        yield Finding("descriptors", "warn", f"{soft}, at most {hard}", remedy)
    else:
        yield Finding("descriptors", "ok", f"{soft}, at most {hard}; the processes raise theirs")


def _port(settings: Settings) -> Iterator[Finding]:
    host, port = settings.gateway.host, settings.gateway.port
    where = deployment.url(settings) if deployment.runs(settings) else ""
    if where:
        yield Finding("port", "ok", f"ours is in use: {where}")
    elif port_is_free(host, port):
        yield Finding("port", "ok", f"{host}:{port} is free")
    else:
        yield Finding("port", "warn", f"{host}:{port} is taken", "end what listens there, or set gateway.port")


def _clock(_: Settings) -> Iterator[Finding]:
    before = now_ns()
    time.sleep(0.001)
    if now_ns() <= before:
        yield Finding("clock", "fail", "CLOCK_BOOTTIME stands still", "treewire needs the boot clock: use Linux")
    else:
        yield Finding("clock", "ok", f"CLOCK_BOOTTIME, domain {CLOCK}")


def _leftovers(settings: Settings) -> Iterator[Finding]:
    if not settings.run_dir.is_dir():
        return
    running = deployment.runs(settings)
    if running and deployment.holder(settings.run_dir) is None:
        remedy = "wait if `treewire up` has just been called; otherwise `treewire down`"
        yield Finding("lock", "warn", "held, but not by a supervisord", remedy)
    elif running:
        yield Finding("lock", "ok", f"held by supervisord (pid {deployment.holder(settings.run_dir)})")
    else:
        orphans = [f"{beat.name} (pid {beat.pid})" for beat in read_beats(settings.run_dir) if beat.alive()]
        if orphans:
            found = f"no supervisord, but {', '.join(orphans)} runs"
            yield Finding("lock", "warn", found, "end it, unless you started it by `treewire run`")
        else:
            yield Finding("lock", "ok", "free; nothing runs")


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _git,
    _wall,
    _home,
    _token,
    _github,
    _database,
    _inotify,
    _descriptors,
    _port,
    _clock,
    _leftovers,
)
