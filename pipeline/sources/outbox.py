"""Looks on their way to a bus that may be full: kept, the newest of each group only, and offered again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from pipeline.domain.model import Look

RETRY_S: Final = 0.05


class Outbox:
    """Nothing is dropped in silence: a look leaves by being sent, or by a newer one of its group taking its place."""

    def __init__(self, send: Callable[[Look], bool]) -> None:
        self._send = send
        self._waiting: dict[tuple[str, str], Look] = {}
        self._something = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, looks: Iterable[Look]) -> None:
        for look in looks:
            self._waiting.pop((look.workspace, look.group), None)
            self._waiting[look.workspace, look.group] = look
        self._something.set()
        self.flush()

    def flush(self) -> bool:
        """Send what the bus takes, oldest first; true if nothing is left."""
        for key, look in list(self._waiting.items()):
            if not self._send(look):
                return False
            del self._waiting[key]
        self._something.clear()
        return True

    async def run(self) -> None:
        """Offer again for as long as something waits."""
        while True:
            await self._something.wait()
            if not self.flush():
                await asyncio.sleep(RETRY_S)
