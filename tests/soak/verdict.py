"""Whether a series of measurements levels off: the one decision of the soak, pure.

A process that has just started grows for a while, memory comes in steps, and every figure is noisy. So only the second
half of a run is judged, and a series *grows* only if both hold:

1. The median slope over all pairs of points (Theil and Sen) is above the tolerance. It does not see outliers.
2. The medians of consecutive parts of that half rise by more than the tolerance from each part to the next, all but one
   of them. A step, however high, rises once; a leak goes on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

HOUR_S: Final = 3600.0
PARTS: Final = 5
FEWEST: Final = 2 * PARTS
MOST_POINTS: Final = 400


class Series(NamedTuple):
    """One figure over time. `tolerance`: the growth per hour that is none, in `unit`; ``None``: shown, not judged."""

    name: str
    group: str
    unit: str
    tolerance: float | None
    points: list[tuple[float, float]]


class Verdict(NamedTuple):
    """`per_hour`: the slope of the second half. `first`, `last`: medians of the first and the last part of the run."""

    series: Series
    word: str
    per_hour: float
    first: float
    last: float
    most: float


def judge(series: Series) -> Verdict:
    """Whether the series levels off. Times are seconds, in order."""
    points = series.points
    values = [value for _, value in points]
    if not points:
        return Verdict(series, "too short", 0.0, 0.0, 0.0, 0.0)
    width = max(1, len(points) // (2 * PARTS))
    ends = median(values[:width]), median(values[-width:])
    half = second_half(points)
    slope = theil_sen(half) * HOUR_S if len(half) > 1 else 0.0
    if len(half) < FEWEST:
        word = "too short"
    else:
        tolerance = series.tolerance
        word = "grows" if tolerance is not None and slope > tolerance and goes_on(half, tolerance) else "level"
    return Verdict(series, word, slope, *ends, max(values))


def second_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    middle = (points[0][0] + points[-1][0]) / 2
    return [point for point in points if point[0] >= middle]


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes of all pairs; of very many points, of evenly chosen ones."""
    step = max(1, len(points) // MOST_POINTS)
    chosen = points[::step]
    slopes = [
        (later - earlier) / (then - at)
        for index, (at, earlier) in enumerate(chosen)
        for then, later in chosen[index + 1 :]
        if then > at
    ]
    return median(slopes) if slopes else 0.0


def goes_on(points: Sequence[tuple[float, float]], tolerance: float) -> bool:
    """Whether each part of it is higher than the one before, by more than the tolerance; one exception is granted."""
    length = len(points) / PARTS
    parts = [points[round(n * length) : round((n + 1) * length)] for n in range(PARTS)]
    middles = [(median(at for at, _ in part), median(value for _, value in part)) for part in parts]
    rises = [(after - before) / (then - at) * HOUR_S for (at, before), (then, after) in itertools.pairwise(middles)]
    return sorted(rises)[1] > tolerance
