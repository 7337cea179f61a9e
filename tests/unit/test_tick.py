"""Sleeping in step: those who look at something again and again wake the process together."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.runtime.tick import next_tick, tick, tick_unless


@pytest.mark.parametrize("now_s", [0.0, 0.1, 0.24, 0.26, 0.5, 7.4999, 7.75, 1e6 + 0.3])
@pytest.mark.parametrize("period_s", [0.5, 1.0, 2.0, 5.0])
def test_a_tick_is_a_whole_multiple_and_half_a_period_to_one_and_a_half_away(now_s: float, period_s: float) -> None:
    due_s = next_tick(now_s, period_s)
    assert due_s / period_s == pytest.approx(round(due_s / period_s))
    assert 0.5 * period_s <= due_s - now_s <= 1.5 * period_s


def test_ticks_of_a_longer_period_fall_on_those_of_a_shorter_one() -> None:
    assert {next_tick(now / 7, 2.0) % 0.5 for now in range(50)} == {0.0}


async def test_whoever_sleeps_to_the_same_tick_wakes_with_the_others_and_not_after_them() -> None:
    loop = asyncio.get_running_loop()
    woken: list[float] = []

    async def sleeper(begin_s: float) -> None:
        await asyncio.sleep(begin_s)
        await tick(0.2)
        woken.append(loop.time() // 0.2)

    await asyncio.sleep(next_tick(loop.time(), 0.2) - loop.time())
    await asyncio.gather(sleeper(0.01), sleeper(0.05))
    assert len(set(woken)) == 1


async def test_a_sleep_that_may_be_ended_ends_with_the_event_and_says_so() -> None:
    event = asyncio.Event()
    assert not await tick_unless(event, 0.02)
    sleeping = asyncio.create_task(tick_unless(event, 3600))
    await asyncio.sleep(0)
    event.set()
    async with asyncio.timeout(20):
        assert await sleeping
