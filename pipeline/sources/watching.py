"""A watch over a set of directories, not recursive, that is set up anew whenever the set changes.

A group of directories that does not answer, as on a mount that vanished, is left out until it does. The watch is a
hint. It ends on names that are no UTF-8 and says nothing when the kernel's queue overflows, so whoever uses
it also looks on a cadence.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from watchfiles import Change, awatch

from pipeline.runtime.aside import Stuck, aside

STEP_MS: Final = 250  # worktrees come and go at the pace of people; polling the queue more often costs CPU for ever
DEBOUNCE_MS: Final = 400
TIMEOUT_MS: Final = 2000
PATIENCE_S: Final = 5.0
RETRY_S: Final = 1.0


class Watching:
    """Calls `touched` with the changed paths, in the loop."""

    def __init__(self, touched: Callable[[set[str]], None]) -> None:
        self._touched = touched
        self._groups: dict[str, tuple[str, ...]] = {}
        self._stuck: dict[str, threading.Thread] = {}  # group → who waits for it
        self._ticket = 0
        self._wanted: frozenset[str] = frozenset()
        self._again = asyncio.Event()
        self._closed = False

    async def watch(self, groups: Mapping[str, Iterable[str]]) -> None:
        """Watch those of these directories that exist, and no others; what may hang together is one group."""
        self._groups = {name: tuple(roots) for name, roots in groups.items()}
        self._ticket += 1
        ticket, wanted = self._ticket, await self._standing()
        if ticket == self._ticket and wanted != self._wanted:
            self._wanted = wanted
            self._again.set()

    async def _standing(self) -> frozenset[str]:
        async def ask(name: str, roots: tuple[str, ...]) -> list[str]:
            waiting = self._stuck.pop(name, None)
            if waiting is not None and waiting.is_alive():
                self._stuck[name] = waiting
                return []
            try:
                return await aside(PATIENCE_S, _existing, roots)
            except Stuck as stuck:
                self._stuck[name] = stuck.thread
                return []

        answers = await asyncio.gather(*(ask(name, roots) for name, roots in self._groups.items()))
        return frozenset(root for answer in answers for root in answer)

    def close(self) -> None:
        self._closed = True
        self._again.set()

    async def run(self) -> None:
        """Watch until closed."""
        while not self._closed:
            self._again.clear()
            roots = self._wanted
            if not roots:
                await self._again.wait()
                continue
            standing = False
            try:
                # The default filter would drop everything below .git.
                async for changes in awatch(
                    *sorted(roots),
                    watch_filter=_real_change,
                    recursive=False,
                    step=STEP_MS,
                    debounce=DEBOUNCE_MS,
                    rust_timeout=TIMEOUT_MS,
                    yield_on_timeout=True,
                    stop_event=self._again,
                ):
                    paths = {path for _, path in changes}
                    if not standing:
                        # What changed before the watch stood was seen by nobody.
                        paths |= roots
                        standing = True
                    if paths:
                        self._touched(paths)
            except (OSError, RuntimeError, UnicodeError):
                await self._pause()
            else:
                if not self._again.is_set():
                    await self._pause()

    async def _pause(self) -> None:
        """The watch ended by itself; wait a little, then set it up again on what exists by then."""
        self._wanted &= await self._standing()
        try:
            await asyncio.wait_for(self._again.wait(), RETRY_S)
        except TimeoutError:
            pass


def _existing(roots: Iterable[str]) -> list[str]:
    return [root for root in roots if os.path.isdir(root)]


def _real_change(_: Change, path: str) -> bool:
    return not path.endswith((".lock", "_MSG", "index", "ORIG_HEAD", "FETCH_HEAD", "AUTO_MERGE", "gc.pid"))
