"""Ports that processes of a worktree listen on: a server that runs there, if nobody else tells of the run script.

The kernel's list of listening sockets is read again and again; whose they are, which costs more, is looked up only when
the list has changed. A port that the kernel has chosen is nobody's address, and one that is there for a moment is
a test's: both are left out. So are agents, which listen for their own ends, and treewire itself.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from pipeline.catalog import Observed
from pipeline.domain.model import Look, Run, Stamp
from pipeline.runtime.supervisor import supervised
from pipeline.sources.desk import Where

LISTS: Final = ("/proc/net/tcp", "/proc/net/tcp6")
CHOSEN: Final = "/proc/sys/net/ipv4/ip_local_port_range"
LISTEN: Final = "0A"
PRODUCER: Final = "seen listening"


class Socket(NamedTuple):
    port: int
    inode: int


class Served(NamedTuple):
    """A process in this folder listens on this port."""

    cwd: str
    port: int


def listening(lines: Iterable[str], user: int, chosen: Collection[int]) -> frozenset[Socket]:
    """The listening sockets of a user in a list of the kernel's, those left out whose port it has chosen."""
    found = set()
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN and fields[7] == str(user):
            port = int(fields[1].rpartition(":")[2], 16)
            if port not in chosen:
                found.add(Socket(port, int(fields[9])))
    return frozenset(found)


class Ports:
    """Blocks; one call at a time."""

    def __init__(self) -> None:
        self._before: frozenset[Socket] = frozenset()
        self._served: list[Served] = []

    def sweep(self, agents: Collection[int]) -> list[Served]:
        sockets = listening(_lines(), os.getuid(), _chosen())
        if sockets != self._before:
            self._served = _whose({socket.port for socket in sockets}, agents)
            self._before = sockets
        return self._served


class Told(NamedTuple):
    """What the catalog has of a workspace's run script, in this incarnation. `ours`: that it is from here."""

    incarnation: int
    run: Run | None
    revision: int
    ours: bool


class Runs:
    """What is to be told of run scripts. A row that somebody else has written is left to him.

    `former`: the workspaces of which a former run of this process told that something runs.
    """

    def __init__(self, former: Collection[str]) -> None:
        self._former = set(former)
        self._told: dict[str, Told] = {}
        self._last: dict[str, int] = {}

    def events(self, served: dict[str, int], places: Iterable[Where], stamp: Stamp, at_ms: int) -> list[Observed]:
        """`served`: the port of each workspace now."""
        steady = {workspace: port for workspace, port in served.items() if self._last.get(workspace) == port}
        self._last = served
        made = []
        for place in places:
            told, port = self._told.get(place.workspace), steady.get(place.workspace)
            if told is not None and told.incarnation != place.incarnation:
                told = None
            known = told is not None or place.workspace in self._former
            if port is None and (not known or place.workspace in served):
                continue
            run = Run(state="stopped") if port is None else Run(state="running", port=port)
            if told is not None and (told.run == run or not told.ours):
                continue
            fields = {"state": run.state, "port": run.port}
            onto = 0 if told is None else told.revision
            made.append(
                Observed(place.project, place.workspace, "run", fields, stamp, at_ms, producer=PRODUCER, onto=onto)
            )
        return made

    def took(self, looks: Iterable[Look | None]) -> None:
        """What became of them. What did not take its place is said again, unless it is somebody else's."""
        for look in looks:
            if look is not None and look.revision is not None and isinstance(look.value, Run):
                ours = look.producer == PRODUCER
                self._told[look.workspace] = Told(look.incarnation, look.value, look.revision, ours)
                self._former.discard(look.workspace)


def _lines() -> Iterator[str]:
    """The kernel lists those that listen first. What comes after may be thousands of connections, and is not read."""
    for name in LISTS:
        try:
            with open(name) as lines:
                next(lines, "")
                yield from itertools.takewhile(_listens, lines)
        except OSError:  # there is no such protocol here
            continue


def _listens(line: str) -> bool:
    return line.split(maxsplit=4)[3:4] == [LISTEN]


def _chosen() -> range:
    try:
        low, high = Path(CHOSEN).read_text().split()
    except (OSError, ValueError):
        return range(32768, 61000)
    return range(int(low), int(high) + 1)


def _whose(ports: Collection[int], agents: Collection[int]) -> list[Served]:
    """Whose sockets those are, of the processes that may be asked."""
    if not ports:
        return []
    owners = {
        (one.pid, one.laddr.port)
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid is not None and one.laddr and one.laddr.port in ports
    }
    found = []
    for pid, port in owners:
        try:
            process = psutil.Process(pid)
            if pid not in agents and process.uids().effective == os.getuid() and not _is_ours(process):
                found.append(Served(process.cwd(), port))
        except (psutil.Error, OSError):
            continue
    return found


def _is_ours(process: psutil.Process) -> bool:
    """Whether the supervisord that started this process started that one too."""
    return supervised() and process.ppid() == os.getppid()
