"""What came of a campaign: a table for people, and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.faults.campaign import Outcome
from tests.faults.inject import NAMES

SHOWN = 20


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which so many are; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def figures(values: Sequence[float]) -> dict[str, float]:
    return {
        "n": len(values),
        "p50": round(percentile(values, 0.5), 4),
        "p99": round(percentile(values, 0.99), 4),
        "max": round(max(values, default=0.0), 4),
    }


def as_json(outcome: Outcome) -> dict[str, Any]:
    by_fault = {
        name: {
            "count": outcome.done[name],
            "recovery_s": figures([one.synced_s for one in outcome.recoveries if one.fault == name]),
            "git_s": figures([one.git_s for one in outcome.recoveries if one.fault == name]),
            "violations": outcome.judge.by_fault[name],
        }
        for name in NAMES
        if name in outcome.done
    }
    restarts = [one.synced_s for one in outcome.recoveries if one.fault.startswith("kill ")]
    costs = outcome.costs
    return {
        "seed": outcome.seed,
        "took_s": round(outcome.took_s, 1),
        "well": outcome.well,
        "faults": sum(outcome.done.values()),
        "by_fault": by_fault,
        "restart_s": figures(restarts),
        "convergence_s": figures(outcome.convergence_s),
        "event_s": {when: figures(values) for when, values in outcome.latency_s.items()},
        "processes": {
            name: {
                "start": _cost(costs.first.get(name)),
                "peak": _cost(costs.peak[name]),
                "end": _cost(costs.last.get(name)),
            }
            for name in sorted(costs.peak)
        },
        "did": outcome.did,
        "trouble": outcome.trouble,
        "violations": [
            {"rule": rule, "message": message, "during": list(during)}
            for rule, message, during in outcome.judge.violations
        ],
        "history": None if outcome.history is None else str(outcome.history),
    }


def _cost(found: tuple[float, int] | None) -> dict[str, float]:
    return {"mb": round(found[0], 1), "descriptors": found[1]} if found else {}


def table(outcome: Outcome) -> str:
    told = as_json(outcome)
    head = ("fault", "count", "last", "p50 s", "p99 s", "max s", "git p99 s", "violations")
    rows = [
        (
            name,
            str(one["count"]),
            str(one["recovery_s"]["n"]),
            *(f"{one['recovery_s'][key]:.2f}" for key in ("p50", "p99", "max")),
            f"{one['git_s']['p99']:.2f}",
            str(one["violations"]),
        )
        for name, one in told["by_fault"].items()
    ]
    lines = [*_aligned([head, *rows]), ""]
    lines.append(
        "p50, p99, max: from the end of the last lasting fault of a wave until all was synced; `last`: how often."
    )
    lines.append("")
    costs = [("process", "start MB", "peak", "end", "start fds", "peak", "end")]
    for name, one in told["processes"].items():
        by = [one[when].get(key, "-") for key in ("mb", "descriptors") for when in ("start", "peak", "end")]
        costs.append((name, *map(str, by)))
    lines += [*_aligned(costs), ""]
    lines.append(f"restart to synced      {_shown(told['restart_s'])}")
    lines.append(f"convergence after quiet {_shown(told['convergence_s'])}")
    for when, values in told["event_s"].items():
        lines.append(f"event, {when:<16} {_shown(values, 1000, 'ms')}")
    did = ", ".join(f"{count:,} {what}" for what, count in sorted(outcome.did.items()))
    lines += ["", f"{told['faults']} faults in {outcome.took_s:.0f} s, seed {outcome.seed}: {did}."]
    lines += [f"Refused or lost, and sent again: {outcome.trouble}."] if outcome.trouble else []
    for rule, message, during in outcome.judge.violations[:SHOWN]:
        lines.append(f"VIOLATED ({rule}; {', '.join(during) or 'no fault'}): {message[:600]}")
    if outcome.history is not None:
        lines.append(f"{len(outcome.judge.violations)} violations. The history is in {outcome.history}")
    else:
        lines.append("0 violations.")
    return "\n".join(lines)


def _shown(values: dict[str, float], factor: float = 1, unit: str = "s") -> str:
    told = ", ".join(f"{key} {values[key] * factor:.2f} {unit}" for key in ("p50", "p99", "max"))
    return f"{told}, of {values['n']}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
