"""What counts as growth: a leak of realistic slope does, noise and steps that end do not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from tests.soak.verdict import FEWEST, PARTS, Series, goes_on, judge, theil_sen

EVERY_S = 3.0
MB_PER_HOUR = 6.0


def series(value: Callable[[float], float], minutes: float = 15, tolerance: float | None = MB_PER_HOUR) -> Series:
    """`value` of the minutes since the start."""
    count = int(minutes * 60 / EVERY_S)
    points = [(n * EVERY_S, value(n * EVERY_S / 60)) for n in range(count + 1)]
    return Series("rss", "memory", "MB", tolerance, points)


@pytest.fixture(params=range(12))
def noise(request: pytest.FixtureRequest) -> Callable[[], float]:
    """A quarter of a megabyte up and down, and a spike now and then."""
    draw = random.Random(request.param)
    return lambda: draw.gauss(0, 0.25) + (8.0 if draw.random() < 0.02 else 0.0)


@pytest.mark.parametrize("leak", [15.0, 60.0, 600.0])
def test_a_leak_is_found_under_noise(noise: Callable[[], float], leak: float) -> None:
    """O3: 15 MB an hour are a kilobyte for each of four events a second."""
    verdict = judge(series(lambda m: 40 + leak * m / 60 + noise()))
    assert verdict.word == "grows"
    assert verdict.per_hour == pytest.approx(leak, rel=0.3)


def test_a_leak_that_memory_shows_in_steps_is_found(noise: Callable[[], float]) -> None:
    verdict = judge(series(lambda m: 40 + math.floor(m / 1.5) * 1.0 + noise()))
    assert verdict.word == "grows"


def test_a_leak_behind_a_warm_up_is_found(noise: Callable[[], float]) -> None:
    verdict = judge(series(lambda m: 40 + 30 * (1 - math.exp(-m)) + 20 * m / 60 + noise()))
    assert verdict.word == "grows"


def test_noise_is_no_growth(noise: Callable[[], float]) -> None:
    assert judge(series(lambda _: 40 + noise())).word == "level"


@pytest.mark.parametrize("at", [0.5, 4, 7.4, 8, 9.5, 11.25, 13, 14.8])
@pytest.mark.parametrize("height", [2.0, 50.0])
def test_a_step_that_levels_is_no_growth_wherever_it_comes(
    noise: Callable[[], float], at: float, height: float
) -> None:
    assert judge(series(lambda m: 40 + (height if m >= at else 0) + noise())).word == "level"


def test_a_warm_up_that_levels_is_no_growth(noise: Callable[[], float]) -> None:
    assert judge(series(lambda m: 40 + 60 * (1 - math.exp(-m / 1.2)) + noise())).word == "level"


def test_what_is_swept_again_and_again_is_no_growth() -> None:
    assert judge(series(lambda m: 10 + 20 * (m % 2))).word == "level"


def test_growth_below_the_tolerance_and_figures_without_one_are_not_judged() -> None:
    assert judge(series(lambda m: 40 + 5 * m / 60)).word == "level"
    shown = judge(series(lambda m: 40 + 600 * m / 60, tolerance=None))
    assert (shown.word, shown.per_hour) == ("level", pytest.approx(600))


def test_what_shrinks_does_not_grow() -> None:
    verdict = judge(series(lambda m: 100 - m))
    assert (verdict.word, verdict.per_hour) == ("level", pytest.approx(-60))
    assert (verdict.first, verdict.last, verdict.most) == (
        pytest.approx(99.3, abs=0.1),
        pytest.approx(85.7, abs=0.1),
        100,
    )


def test_too_few_points_are_said_to_be_too_few() -> None:
    assert judge(Series("rss", "memory", "MB", 1.0, [])).word == "too short"
    assert judge(series(float, minutes=(2 * FEWEST - 4) * EVERY_S / 60)).word == "too short"


def test_the_slope_is_the_median_of_all_pairs() -> None:
    """One outlier moves a mean and no median."""
    assert theil_sen([(0, 0), (1, 2), (2, 4), (3, 600), (4, 8)]) == 2
    assert theil_sen([(0, 5)]) == 0


def test_one_part_that_does_not_rise_is_granted_and_two_are_not() -> None:
    def parts(*levels: float) -> list[tuple[float, float]]:
        return [(float(n), levels[n * PARTS // 50]) for n in range(50)]

    assert goes_on(parts(1, 2, 3, 3, 4), 0)
    assert not goes_on(parts(1, 2, 2, 3, 3), 0)
