"""How a figure is printed: median and spread of several runs, and ours as a ratio of what stands beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

ROUNDS = 5


def line(name: str, values: Sequence[float], unit: str, goal: str = "") -> float:
    """Print one figure; returns its median."""
    middle = statistics.median(values)
    told = f"{name:<58} {_number(middle):>10} {unit:<10} [{_number(min(values))} … {_number(max(values))}]"
    print(told + (f"   goal {goal}" if goal else ""), flush=True)
    return middle


def ratio(name: str, ours: float, theirs: float) -> None:
    print(f"{name:<58} {ours / theirs:>10.2f} ×", flush=True)


def rounds(one: Callable[[], float], times: int = ROUNDS) -> list[float]:
    """The first round warms up and does not count."""
    one()
    return [one() for _ in range(times)]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def heading(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}", flush=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"
