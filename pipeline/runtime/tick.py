"""Sleeping in step: whoever looks at something again and again wakes together with all others who do.

A wake-up costs more than what most of them then do, so that it is the number of wake-ups that idleness is paid by. All
processes of a host are on the same beat: what one says on it reaches the others while they are awake.
"""

from __future__ import annotations

import asyncio
import math


def next_tick(now_s: float, period_s: float) -> float:
    """The first whole multiple of the period that is at least half a period away."""
    return math.ceil(now_s / period_s + 0.5) * period_s


async def tick(period_s: float) -> None:
    """Sleep until the next tick of this period: half a period to one and a half from now."""
    now_s = asyncio.get_running_loop().time()
    await asyncio.sleep(next_tick(now_s, period_s) - now_s)


async def tick_unless(event: asyncio.Event, period_s: float) -> bool:
    """As `tick`, but no longer than until the event is set; true if it is."""
    try:
        async with asyncio.timeout_at(next_tick(asyncio.get_running_loop().time(), period_s)):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
