"""`treewire up`: make the home fit, become supervisord, and say when everything is ready.

The command itself turns into supervisord, lock and all, so that nothing stands between them that could die alone; a
short-lived child (or, detached, the parent) waits for readiness and tells.
"""

from __future__ import annotations

import errno
import http.client
import os
import secrets
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from pipeline.cli import deployment
from pipeline.runtime.place import OperatorError, private_dir
from pipeline.runtime.settings import Gateway, Settings
from pipeline.runtime.supervisor import Unreachable

_POLL_S = 0.1
_HTTP_S = 2.0
_TOKEN_BYTES = 32


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway; 0 for any that is free.")
@click.option("-d", "--detach", is_flag=True, help="Return once everything is ready, and leave it running.")
@click.pass_obj
def up(settings: Settings, paths: tuple[Path, ...], port: int | None, detach: bool) -> None:
    """Start treewire, and follow the repositories at PATH with all their worktrees.

    Without PATH it follows what it followed before; the very first time, the repository of the current directory.
    Ctrl-C stops it all; with -d, `treewire down` does.
    """
    os.umask(0o077)
    private_dir(settings.home)
    private_dir(settings.run_dir)
    private_dir(settings.log_dir)
    lock = deployment.take_lock(settings.run_dir)
    if lock is None:
        where = deployment.url(settings)
        at = f" at {where}" if where else ""
        raise OperatorError(
            f"treewire already runs for {settings.home}{at}; stop it with `treewire down`, "
            "or follow another repository with `treewire project add PATH`"
        )
    make_token(settings.token_path)
    for line in _follow(settings, paths):
        click.echo(line)
    settings = _with_port(settings, port)
    settings.url_path.unlink(missing_ok=True)
    sys.stdout.flush()
    (_detached if detach else _foreground)(settings, lock)


def make_token(path: Path) -> None:
    """Create the token, once. One that others could read is closed to them again, and said to have been open."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
            raise OperatorError(f"{path} is not a file of yours; remove it, and a new token is made") from None
        if found.st_mode & 0o077:
            os.chmod(path, 0o600)
            click.echo(
                f"treewire: others could read {path}; its mode is 0600 again. Remove it for a new token if they may "
                "have.",
                err=True,
            )
        if found.st_size == 0:
            raise OperatorError(f"{path} is empty; remove it, and a new token is made") from None
        return
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")


def _follow(settings: Settings, paths: tuple[Path, ...]) -> list[str]:
    from pipeline import catalog as catalogs  # the database's libraries; supervisord shall not carry them

    catalog = catalogs.open(settings)
    try:
        known = {project.id for project in catalog.projects()}
    finally:
        catalog.close()
    from pipeline.cli.project import add_paths, repository_of

    if not paths and not known and (here := repository_of(Path.cwd())) is not None:
        paths = (here,)
    lines = []
    if paths:
        lines = add_paths(settings, paths)
    catalog = catalogs.open(settings)
    try:
        projects, workspaces = catalog.projects(), catalog.workspaces()
    finally:
        catalog.close()
    if not projects:
        return ["No project yet: add one with `treewire project add PATH`."]
    for project in projects:
        if project.id not in known:
            continue  # told when it was added
        number = sum(workspace.project == project.id for workspace in workspaces)
        lines.append(f"{project.id}: {number} worktree{'' if number == 1 else 's'}")
    return lines


def _with_port(settings: Settings, asked: int | None) -> Settings:
    """Settings with a port that is free now, and a number: a restarted gateway must come back to the same one."""
    port = settings.gateway.port if asked is None else asked
    free = _free_port(settings.gateway.host, port)
    if free is None:
        if asked is not None or port != Gateway().port:
            raise OperatorError(f"port {port} is taken on {settings.gateway.host}; choose another, or 0 for any")
        free = _free_port(settings.gateway.host, 0)
        click.echo(f"Port {port} is taken; using {free}.")
    gateway = msgspec.structs.replace(settings.gateway, port=free)
    return msgspec.structs.replace(settings, gateway=gateway)


def port_is_free(host: str, port: int) -> bool:
    """Whether a gateway could listen there. Raises `OperatorError` where the host is no address of this machine."""
    return _free_port(host, port) is not None


def _free_port(host: str, port: int) -> int | None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise OperatorError(f"cannot listen on {host} port {port}: {error.strerror}; set gateway.host") from None


# ── becoming supervisord ─────────────────────────────────────────────────────────────────────────


def environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """What supervisord.conf and the processes under it find in their environment."""
    supervisor = settings.supervisor
    return {
        **base,
        **settings.environment(),
        "TREEWIRE_RUN_DIR": str(settings.run_dir),
        "TREEWIRE_LOG_DIR": str(settings.log_dir),
        "TREEWIRE_PYTHON": sys.executable,
        "TREEWIRE_WORKERS": str(settings.git.workers),
        "TREEWIRE_GATEWAYS": str(settings.gateway.processes),
        "TREEWIRE_SILENT_S": str(supervisor.silent_s),
        "TREEWIRE_REVIVE_S": str(supervisor.revive_s),
        "TREEWIRE_STOP_S": str(int(supervisor.drain_s) + 3),
        # glibc gives each thread an arena of its own, which small processes pay for in memory and never need.
        "MALLOC_ARENA_MAX": base.get("MALLOC_ARENA_MAX", "2"),
    }


def _become_supervisord(settings: Settings, lock: int) -> None:
    env = environment(settings, os.environ) | {"TREEWIRE_SUPERVISOR_PID": str(os.getpid())}
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    if lock == deployment.LOCK_FD:
        os.set_inheritable(lock, True)
    else:
        os.dup2(lock, deployment.LOCK_FD, inheritable=True)
    conf = str(deployment.supervisord_conf())
    os.execve(sys.executable, [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", conf], env)  # noqa: S606


def _foreground(settings: Settings, lock: int) -> None:
    parent = os.getpid()
    if os.fork() > 0:
        _become_supervisord(settings, lock)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.close(lock)
    code = 1
    try:
        code = _tell_when_ready(settings, lambda: os.getppid() == parent, "Ctrl-C stops it.")
        sys.stdout.flush()
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)  # what the parent registered to be done at exit is not this child's to do


def _detached(settings: Settings, lock: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            _become_supervisord(settings, lock)
        finally:
            os._exit(1)
    os.close(lock)
    raise SystemExit(
        _tell_when_ready(settings, lambda: os.waitpid(pid, os.WNOHANG)[0] == 0, "`treewire down` stops it.")
    )


# ── readiness ────────────────────────────────────────────────────────────────────────────────────


def _tell_when_ready(settings: Settings, alive: Callable[[], bool], how_to_stop: str) -> int:
    deadline = time.monotonic() + settings.supervisor.ready_s
    told = ""
    while time.monotonic() < deadline:
        if not alive():
            click.echo("treewire: supervisord ended. Its last words:", err=True)
            for line in deployment.tail(settings, "supervisord"):
                click.echo(f"  {line}", err=True)
            return 1
        ready, why = readiness(settings)
        if ready:
            click.echo(f"Ready: {deployment.url(settings)}  ({how_to_stop})")
            click.echo(f"Sign in: {way_in(settings)}")
            return 0
        if why != told and sys.stdout.isatty():
            click.echo(f"Waiting: {why}")
            told = why
        time.sleep(_POLL_S)
    _, why = readiness(settings)
    click.echo(f"treewire: not ready after {settings.supervisor.ready_s:g} s: {why}", err=True)
    for name in unwell(settings):
        click.echo(f"{name}, the end of {settings.log_dir / f'{name}.log'}:", err=True)
        for line in deployment.tail(settings, name):
            click.echo(f"  {line}", err=True)
    click.echo(f"It goes on trying; `treewire status` shows how. {how_to_stop}", err=True)
    return 1


def way_in(settings: Settings) -> str:
    """For a person at a terminal a link that signs the browser in; a log must not hold the token."""
    if not sys.stdout.isatty():
        return f"with the token in {settings.token_path}"
    # A fragment stays in the browser: it is in no request and in no server's log.
    return f"{deployment.url(settings)}#token={settings.token_path.read_text().strip()}"


def readiness(settings: Settings) -> tuple[bool, str]:
    """Whether the gateway says that all of the pipeline is ready, and if not, what is missing."""
    where = deployment.url(settings)
    if not where:
        return False, ", ".join(unwell(settings)) or "the gateway"
    parts = urlsplit(where)
    peer = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_HTTP_S)
    try:
        token = settings.token_path.read_text().strip()
        peer.request("GET", f"{parts.path.rstrip('/')}/readyz", headers={"Authorization": f"Bearer {token}"})
        answer = peer.getresponse()
        text = answer.read(4096).decode(errors="replace").strip()
        return answer.status == http.client.OK, text or f"the gateway answered {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return False, f"the gateway at {where} does not answer ({error})"
    finally:
        peer.close()


def unwell(settings: Settings) -> list[str]:
    """The processes that do not run well, or ``supervisord`` where it does not answer."""
    try:
        return [member.name for member in deployment.members(settings) if not member.well]
    except Unreachable:
        return ["supervisord"]
