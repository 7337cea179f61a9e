"""One soak: a deployment, a load, measurements, and what came of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.deployment import deployment, get, home, worktrees
from pipeline import bus, catalog
from pipeline.runtime.settings import Settings
from tests.soak import draw
from tests.soak.load import Load
from tests.soak.measure import Record, sample, worn
from tests.soak.verdict import Verdict, judge

EVERY_S: Final = 3.0
SAY_S: Final = 30.0
PATIENCE_S: Final = 30.0
FILES: Final = 40
# Bounds that are reached within the warm-up, so that a soak of minutes sees what comes after them.
SETTINGS: Final = """
[gateway]
heartbeat_ms = 1000
[store]
max_tombstones = 128
[sources]
discover_s = 10
[reconciler]
every_s = 15
[database]
keep_archived_days = 0.001
"""


class Outcome:
    """What a soak found. `failures`: beyond growth, what must not happen; in words."""

    def __init__(self, record: Record, load: Load, took_s: float, failures: list[str]) -> None:
        self.verdicts: list[Verdict] = [judge(series) for series in record.series()]
        self.took_s, self.done, self.trouble = took_s, load.done, load.trouble
        self.failures = failures

    @property
    def grows(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.word == "grows"]

    @property
    def well(self) -> bool:
        return not self.grows and not self.failures

    def report(self) -> dict[str, Any]:
        return {
            "minutes": round(self.took_s / 60, 2),
            "well": self.well,
            "failures": self.failures,
            "done": dict(self.done),
            "trouble": dict(self.trouble),
            "series": [
                {
                    "name": verdict.series.name,
                    "group": verdict.series.group,
                    "unit": verdict.series.unit,
                    "verdict": verdict.word,
                    "per_hour": round(verdict.per_hour, 3),
                    "tolerance_per_hour": verdict.series.tolerance,
                    "first": round(verdict.first, 3),
                    "last": round(verdict.last, 3),
                    "most": round(verdict.most, 3),
                    "points": len(verdict.series.points),
                }
                for verdict in self.verdicts
            ],
        }

    def table(self) -> str:
        rows: list[tuple[str, ...]] = [("figure", "", "start", "end", "most", "per hour", "tolerated", "verdict")]
        for one in self.verdicts:
            tolerance = one.series.tolerance
            rows.append(
                (
                    one.series.name,
                    one.series.unit,
                    *(f"{value:.1f}" for value in (one.first, one.last, one.most)),
                    f"{one.per_hour:+.1f}",
                    "-" if tolerance is None else f"{tolerance:g}",
                    "shown" if tolerance is None else one.word,
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = [
            "  ".join(
                cell.ljust(width) if place in (0, 1, 7) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        did = ", ".join(f"{count:,} {what}" for what, count in sorted(self.done.items()))
        lines = [*aligned, "", f"In {self.took_s / 60:.1f} min: {did}."]
        lines += [f"Trouble, {count} times: {what}" for what, count in self.trouble.most_common(10)]
        lines += [f"FAILED: {failure}" for failure in self.failures]
        lines += [f"GROWS: {one.series.name}, {one.per_hour:+.1f} {one.series.unit} an hour" for one in self.grows]
        lines.append("All levels off." if self.well else "Not well.")
        return "\n".join(lines)


def soak(
    minutes: float, out: Path | None, seed: int = 1, every_s: float = EVERY_S, settings: str = SETTINGS
) -> Outcome:
    """Run everything for so long. With `out`, figures.json and the logs are written there."""
    with tempfile.TemporaryDirectory(prefix="tw-soak-") as name, home() as fresh:
        folder = Path(name)
        repository = worktrees(folder, 0, FILES)
        (fresh.home / "treewire.toml").write_text(settings)
        agents = folder / "agents"
        agents.mkdir()
        with deployment(fresh, repository, CLAUDE_CONFIG_DIR=str(agents), CODEX_HOME=str(folder / "codex")) as url:
            running = Settings.load(fresh.home, environ={})
            outcome = asyncio.run(_measured(running, url, folder, agents, minutes * 60, seed, every_s))
        if out is not None:  # what a process said before it fell is in its log
            shutil.copytree(fresh.home / "log", out / "log", dirs_exist_ok=True)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "figures.json").write_text(json.dumps(outcome.report(), indent=2) + "\n")
    return outcome


async def _measured(
    settings: Settings, url: str, folder: Path, agents: Path, seconds: float, seed: int, every_s: float
) -> Outcome:
    load, record = Load(settings, url, folder, agents, seed), Record()
    token = settings.token_path.read_text().strip()
    rows = catalog.open(settings)
    began = time.monotonic()
    running = asyncio.create_task(load.run())
    said = -SAY_S

    def measure() -> None:
        metrics = get(url + "metrics", token).decode()
        archived = len(rows.workspaces(archived=True)) - len(rows.workspaces())
        sample(record, settings, time.monotonic() - began, metrics, archived)

    try:
        while (passed := time.monotonic() - began) < seconds and not running.done():
            try:
                await asyncio.to_thread(measure)
            except (OSError, catalog.CatalogUnavailable) as error:
                load.trouble[f"measuring: {error}"[:120]] += 1
            if passed - said >= SAY_S:
                said = passed
                _say(record, load.done, passed, seconds)
            await asyncio.sleep(max(0.0, min(every_s - (time.monotonic() - began - passed), seconds - passed)))
        failures = [f"{name} was restarted {count} times" for name, count in record.restarts.items()]
        failures += await _worn(settings)
        if running.done():
            failures.append(f"the load ended: {running.exception()!r}")
        return Outcome(record, load, time.monotonic() - began, failures)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        rows.close()
        bus.close()


async def _worn(settings: Settings) -> list[str]:
    """Who is not well, and stays so for a while: a process may be put out for a moment by what the load just did."""
    for _ in range(int(PATIENCE_S)):
        found = await asyncio.to_thread(worn, settings)
        if not found:
            break
        await asyncio.sleep(1)
    return found


def _say(record: Record, done: Counter[str], passed: float, seconds: float) -> None:
    rss = sum(points[-1][1] for (_, kind, _), points in record.points.items() if kind == "rss")
    entries = record.points.get(("store", "entries", ""), [(0.0, 0.0)])[-1][1]
    catalog_mb = record.points.get(("disk", "catalog", ""), [(0.0, 0.0)])[-1][1]
    print(
        f"{passed / 60:5.1f} of {seconds / 60:g} min: {rss:.0f} MB resident, {entries:.0f} entries, "
        f"catalog {catalog_mb:.2f} MB, {done['events']:,} events, {done['clients']:,} clients",
        file=sys.stderr,
        flush=True,
    )


def pictures(outcome: Outcome, out: Path) -> list[Path]:
    """Draw what was measured. Raises `draw.CannotDraw`."""
    return draw.draw([one for one in outcome.verdicts if one.series.points], out)
