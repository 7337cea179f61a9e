"""The deployment that the demo runs in: a home of its own, no settings of anybody else, and nothing left at the end."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import click

from pipeline.cli import deployment
from pipeline.cli.down import stop
from pipeline.cli.up import readiness
from pipeline.runtime.place import private_dir
from pipeline.runtime.settings import Settings

READY_S: Final = 60.0
POLL_S: Final = 0.1
END_S: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1
# What the demo's own home says, and what decides whose truth is read.
_NOT_HANDED_DOWN: Final = ("TREEWIRE_HOME", "TREEWIRE_DATABASE__URL")


class House(NamedTuple):
    """Where the demo lives: ``root`` has the home, and the folder of the repositories."""

    root: Path
    settings: Settings

    @property
    def repositories(self) -> Path:
        return self.root / "code"


@contextmanager
def interruptible() -> Iterator[None]:
    """Whatever tells us to end does so as Ctrl-C would, so that we clean up."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell lets what it starts in the background ignore SIGINT, and asyncio leaves that as it finds it.
    before = [(signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))]
    before += [(signum, signal.signal(signum, interrupt)) for signum in (signal.SIGTERM, signal.SIGHUP)]
    try:
        yield
    finally:
        for signum, handler in before:
            signal.signal(signum, handler)


@contextmanager
def house(folder: Path | None) -> Iterator[House]:
    """A temporary folder that is removed at the end; or `folder`, which has to be empty, and stays."""
    if folder is None:
        root = Path(tempfile.mkdtemp(prefix="treewire-demo-"))
    else:
        root = folder.expanduser().absolute()
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise click.ClickException(f"{root} is not an empty folder: the demo makes its own home; name another one.")
        private_dir(root)
    found = House(root, Settings(home=root / "home"))
    try:
        yield found
    finally:
        if folder is None:
            shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(found.settings.run_dir, ignore_errors=True)  # beside the home, if that has a long name


@contextmanager
def deployed(found: House, projects: Iterable[Path], port: int | None) -> Iterator[None]:
    """A deployment that follows these repositories, ready. It ends with us, whatever ends us."""
    command = [sys.executable, "-m", "pipeline.cli", "up", "--home", str(found.settings.home)]
    command += [] if port is None else ["--port", str(port)]
    said = found.root / "up.log"
    parent = os.getpid()
    with said.open("w") as log:
        child = subprocess.Popen(
            [*command, *map(str, projects)],
            cwd=found.root,
            env=_environment(found.root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours alone
            preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509  there are no threads yet
        )
    try:
        _wait_until_ready(found.settings, child, said)
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is impatient now would leave things behind
        _end(found.settings, child)


def _environment(root: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_DOWN}
    return kept | {"XDG_CONFIG_HOME": str(root / "config")}


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _wait_until_ready(settings: Settings, child: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + READY_S
    why = "it has not started"
    while child.poll() is None and time.monotonic() < deadline:
        ready, why = readiness(settings)
        if ready:
            return
        time.sleep(POLL_S)
    told = said.read_text().strip()
    raise click.ClickException(f"the demo's deployment is not ready ({why}). It said:\n{told}")


def _end(settings: Settings, child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        try:
            if deployment.holder(settings.run_dir) == child.pid:
                stop(settings)
            else:  # not yet a supervisord
                child.terminate()
            child.wait(END_S)
        except (click.ClickException, subprocess.TimeoutExpired):
            child.kill()
    child.wait()
