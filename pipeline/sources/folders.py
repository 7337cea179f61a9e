"""A watch over a changing set of folders, event by event: nothing is done while nothing happens.

Not recursive. A hint: when the kernel's queue has overflowed, or a watch could not be had, `missed` is called, and who
uses it also looks on a cadence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Final

from asyncinotify import Inotify, Mask, Watch

CHANGES: Final = (
    Mask.CREATE | Mask.MODIFY | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ONLYDIR
)
GATHER_S: Final = 0.03
READ_AHEAD: Final = 256


class Folders:
    """`touched(paths)` after each burst of changes; `missed()` when there may have been others.

    `refused`: how many folders could not be watched, because the kernel's limits are used up.
    """

    def __init__(
        self, touched: Callable[[set[str]], None], missed: Callable[[], None], gather_s: float = GATHER_S
    ) -> None:
        self.refused = 0
        self._gather_s = gather_s
        self._touched, self._missed = touched, missed
        self._watches: dict[str, Watch] = {}
        self._inotify: Inotify | None
        try:
            self._inotify = Inotify(cache_size=READ_AHEAD, sync_timeout=0)
        except OSError:
            self._inotify = None

    def watch(self, folders: Iterable[str]) -> set[str]:
        """Watch exactly these; returns those that were not watched until now: what is in them came unseen.

        One that is not there is left out until it is asked for again.
        """
        wanted = set(folders)
        if self._inotify is None:
            self.refused = len(wanted)
            return set()
        for path in self._watches.keys() - wanted:
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(self._watches[path])
            del self._watches[path]
        self.refused = 0
        fresh = wanted - self._watches.keys()
        for path in fresh:
            try:
                self._watches[path] = self._inotify.add_watch(path, CHANGES)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                self.refused += 1
        return fresh & self._watches.keys()

    async def run(self) -> None:
        """Until cancelled."""
        if self._inotify is None:
            await asyncio.Event().wait()
            return
        inotify = self._inotify
        loop, readable = asyncio.get_running_loop(), asyncio.Event()

        def woken() -> None:
            # It stays readable until it is drained: who went on listening would be called without end.
            loop.remove_reader(inotify.fd)
            readable.set()

        try:
            while True:
                loop.add_reader(inotify.fd, woken)
                await readable.wait()
                await asyncio.sleep(self._gather_s)  # what is written is written in pieces
                readable.clear()
                self._drain(inotify)
        finally:
            loop.remove_reader(inotify.fd)
            inotify.close()

    def _drain(self, inotify: Inotify) -> None:
        paths: set[str] = set()
        overflown = False
        while (event := inotify.sync_get()) is not None:
            if event.mask & Mask.Q_OVERFLOW:
                overflown = True
            elif event.mask & Mask.IGNORED:  # the folder itself is gone
                for path in [path for path, watch in self._watches.items() if watch is event.watch]:
                    del self._watches[path]
            elif event.path is not None:
                paths.add(os.fspath(event.path))
        if paths:
            self._touched(paths)
        if overflown:
            self._missed()
