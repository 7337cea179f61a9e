"""tmux: whether something was written in a pane of a worktree lately. One call tells it of all panes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from typing import ClassVar, Final, NamedTuple

from pipeline.catalog import CatalogUnavailable, Observed
from pipeline.domain.model import LEASED, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.tick import tick
from pipeline.sources.desk import Desk, Source, Where

EVERY_S: Final = 5.0
NONE_S: Final = 30.0
ACTIVE_S: Final = 10
DEADLINE_S: Final = 3.0
MAX_BYTES: Final = 1 << 20
FORMAT: Final = "#{pane_pid}\t#{window_activity}\t#{pane_current_path}"
NO_SERVER: Final = ("no server running", "error connecting", "no such file")


class Pane(NamedTuple):
    """A pane: its first process, when something was last written in its window (wall clock, s), and its folder."""

    pid: int
    activity: int
    cwd: str


def panes(listing: str) -> list[Pane]:
    """The panes of a listing; lines that do not read as one are left out."""
    found = []
    for line in listing.splitlines():
        pid, _, rest = line.partition("\t")
        activity, _, cwd = rest.partition("\t")
        if pid.isascii() and pid.isdigit() and activity.isascii() and activity.isdigit() and cwd.startswith("/"):
            found.append(Pane(int(pid), int(activity), cwd))
    return found


def socket() -> str:
    """Where the server listens that tmux would ask: nothing there, nobody to ask."""
    given = os.environ.get("TMUX", "").partition(",")[0]
    return given or f"{os.environ.get('TMUX_TMPDIR') or '/tmp'}/tmux-{os.getuid()}/default"  # noqa: S108


class Tmux(Source):
    name: ClassVar[str] = "tmux"

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, tuple[bool, int]] = {}

    async def run(self, desk: Desk) -> None:
        while True:
            program = shutil.which("tmux")
            if program is None:
                self.fares("idle", "tmux is not installed")
                await asyncio.sleep(NONE_S)
                continue
            began = now_ns()
            there = os.path.exists(socket())
            listing = await self._list(program) if there else None
            if listing is None:
                self.fares("idle", "no tmux server runs")
            else:
                self.fares("running")
            await self._tell(desk, panes(listing or ""), Stamp(began, now_ns(), CLOCK))
            self.looked()
            await tick(NONE_S if there and listing is None else EVERY_S)

    async def _list(self, program: str) -> str | None:
        """``None``: no server runs. Raises `OSError` if tmux does not answer as it should."""
        child = await asyncio.create_subprocess_exec(
            program,
            "list-panes",
            "-a",
            "-F",
            FORMAT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(child.communicate(), DEADLINE_S)
        except TimeoutError:
            child.kill()
            await child.wait()
            raise OSError("tmux does not answer") from None
        if child.returncode == 0:
            return out[:MAX_BYTES].decode(errors="replace")
        said = err[:500].decode(errors="replace").strip()
        if any(word in said.lower() for word in NO_SERVER):
            return None
        raise OSError(f"tmux list-panes: {said}")

    async def _tell(self, desk: Desk, found: Iterable[Pane], stamp: Stamp) -> None:
        at_ms = wall_ms()
        latest: dict[str, tuple[Where, int]] = {}
        for pane in found:
            if (place := desk.place_of(pane.cwd)) is not None:
                seconds = max(pane.activity, latest.get(place.workspace, (place, 0))[1])
                latest[place.workspace] = place, seconds
        events = []
        now: dict[str, tuple[bool, int]] = {}
        for workspace, (place, seconds) in latest.items():
            now[workspace] = at_ms // 1000 - seconds <= ACTIVE_S, seconds
            if now[workspace] != self._told.get(workspace):
                events.append(self._event(place, now[workspace], stamp, at_ms))
        for gone in self._told.keys() - now.keys():
            place = next((one for one in desk.places() if one.workspace == gone), None)
            if place is not None and self._told[gone][0]:
                events.append(self._event(place, (False, self._told[gone][1]), stamp, at_ms))
        try:
            if events:
                await desk.record(events)
        except CatalogUnavailable:
            return  # said again with the next listing
        self._told = now

    def _event(self, place: Where, told: tuple[bool, int], stamp: Stamp, at_ms: int) -> Observed:
        fields = {"active": told[0], "last_output": told[1] * 1000}
        return Observed(
            place.project, place.workspace, "terminal", fields, stamp, at_ms, producer=f"{LEASED} {self.name}"
        )
