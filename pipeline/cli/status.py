"""`treewire status`: what runs, what it costs, and what each process says of itself."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
import psutil

from pipeline.cli import deployment
from pipeline.runtime.clock import now_ns
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import Unreachable

_DEGRADED = 1
_NOT_RUNNING = 3
_SOURCE = "source_"
_HEAD = ("PROCESS", "STATE", "PID", "UPTIME", "RSS", "CPU", "FDS", "BEAT")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show every process: its state, its cost, and its own figures.

    Exit code: 0 all is well, 1 something is not, 3 nothing runs.
    """
    settings: Settings = ctx.obj
    report = survey(settings)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _print(settings, report)
    ctx.exit({"well": 0, "degraded": _DEGRADED, "stopped": _NOT_RUNNING}[report["health"]])


def survey(settings: Settings) -> dict[str, Any]:
    """All that ``--json`` prints. ``health``: well, degraded or stopped."""
    report: dict[str, Any] = {"home": str(settings.home), "health": "stopped", "url": "", "processes": [], "notes": []}
    if not deployment.runs(settings):
        return report
    watchdog = deployment.watchdog_notes(settings.run_dir)
    report |= {"url": deployment.url(settings), "notes": watchdog.get("notes", []), "health": "degraded"}
    supervisor_pid = deployment.holder(settings.run_dir)
    try:
        members = deployment.members(settings)
    except Unreachable as error:
        report["reason"] = str(error)
        return report
    restarts = watchdog.get("restarts", {})
    rows = [_row(member, restarts.get(member.name, 0)) for member in members]
    if supervisor_pid is not None:
        rows.append(_measured({"name": "supervisord", "state": "RUNNING", "pid": supervisor_pid, "well": True}))
    report["processes"] = rows
    report["rss"] = sum(row.get("rss", 0) for row in rows)
    report["health"] = "well" if all(row["well"] for row in rows) else "degraded"
    return report


def _row(member: deployment.Member, restarts: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": member.name, "state": member.state, "pid": member.pid, "well": member.well}
    if restarts:
        row["restarts"] = restarts
    beat = member.beat
    if beat is None:
        if member.state != "RUNNING":
            row["said"] = member.said
        return _measured(row)
    figures = dict(beat.figures)
    if sources := _sources(figures, beat.age_s()):
        row["sources"] = sources
    return row | {
        "says": beat.state,
        "uptime_s": round((now_ns() - beat.started_ns) / 1e9, 1),
        "rss": beat.rss,
        "cpu_s": beat.cpu_s,
        "fds": beat.fds,
        "threads": beat.threads,
        "lag_ms": beat.lag_ms,
        "beat_age_s": round(beat.age_s(), 1),
        "figures": figures,
    }


def _sources(figures: dict[str, Any], beat_age_s: float) -> dict[str, dict[str, Any]]:
    """Each source's health, the age of its last look and for how long that holds, taken out of the figures.

    ``age_s`` is ``None`` before the first look, ``lease_s`` where what it says is not leased; both as of now.
    """
    names = [name for name in figures if name.startswith(_SOURCE) and not name.endswith(("_age_s", "_lease_s"))]
    found = {}
    for name in names:
        health, _, why = str(figures.pop(name)).partition(": ")
        age, lease = figures.pop(f"{name}_age_s", None), figures.pop(f"{name}_lease_s", None)
        found[name.removeprefix(_SOURCE)] = {
            "health": health,
            "why": why,
            "age_s": None if age is None else round(age + beat_age_s, 1),
            "lease_s": None if lease is None else round(max(0.0, lease - beat_age_s), 1),
        }
    return found


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """With the figures of a process that has no beat, as the kernel tells them."""
    if not row["pid"]:
        return row
    try:
        process = psutil.Process(row["pid"])
        with process.oneshot():
            times = process.cpu_times()
            row |= {
                "uptime_s": round(time.time() - process.create_time(), 1),
                "rss": process.memory_info().rss,
                "cpu_s": round(times.user + times.system, 2),
                "fds": process.num_fds(),
                "threads": process.num_threads(),
            }
    except psutil.Error:
        pass
    return row


def _print(settings: Settings, report: dict[str, Any]) -> None:
    if report["health"] == "stopped":
        click.echo(f"Nothing runs for {settings.home}. Start it with `treewire up`.")
        return
    if "reason" in report:
        click.echo(f"Degraded: {report['reason']}")
        return
    rows = [_cells(row) for row in report["processes"]]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    for row in (_HEAD, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo(f"{report['rss'] / 2**20:.0f} MB in all; {report['health']}; {report['url'] or 'no URL yet'}")
    for row in report["processes"]:
        figures = dict(row.get("figures", {}))
        if row["name"] == "dispatcher":
            for line in _git(figures):
                click.echo(line)
        for name, source in row.get("sources", {}).items():
            click.echo(f"source {name}: {_source(source)}")
        if said := _github(figures):
            click.echo(said)
        if figures:
            click.echo(
                f"{row['name']}: "
                + " ".join(f"{key}={_figure(value)}" for key, value in figures.items() if value != "")
            )
    for row in report["processes"]:
        if row.get("said"):
            click.echo(f"{row['name']}: {row['said']}; see {settings.log_dir / row['name']}.log")
    for note in report["notes"][-5:]:
        at = time.strftime("%H:%M:%S", time.localtime(note["wall_ms"] / 1000))
        click.echo(f"{at} {note['process']}: {note['what']}")


def _git(figures: dict[str, Any]) -> list[str]:
    """The dispatcher's figures in words; takes out of `figures` what it shows."""
    if "worktrees" not in figures:
        return []

    def take(key: str) -> Any:
        return figures.pop(key, 0)

    def such(count: int, why: str) -> str:
        return "" if not count else f"{count}: {why}" if count == 1 else f"{count}, such as {why}"

    full, scoped, why_full = take("looks_full"), take("looks_scoped"), take("looks_full_why")
    drift, unwatched, overflows = take("git_drift"), take("unwatched_trees"), take("watch_overflows")
    parts = {
        "looks": f"{scoped} scoped, {full} full" + (f" ({why_full})" if full else ""),
        "cost": f"{take('git_processes')} git processes for {take('git_looks')} jobs",
        "watched": f"{take('watched_trees')} worktrees; {take('watches')} of {take('watch_budget')} watches",
        "unwatched": f"{take('unwatched_why')}" if unwatched else "",
        "overflows": f"{overflows} of the watch" if overflows else "",
        "degraded": str(take("watch_degraded") or ""),
        "drift": f"{drift} paths had changed though nothing had told so; the log says where" if drift else "",
        "failing": such(take("failing"), take("failing_why")),
        "skipped": such(take("skipped"), take("skipped_why")),
    }
    there = f"{take('worktrees')} worktrees, {take('workers')} workers"
    head = f"git: {there}, {take('queue')} waiting, {take('running')} running"
    return [head, *(f"  {name:<10} {text}" for name, text in parts.items() if text)]


def _source(source: dict[str, Any]) -> str:
    parts = [f"{source['health']}: {source['why']}" if source["why"] else source["health"]]
    if source["age_s"] is not None:
        parts.append(f"looked {source['age_s']:.0f} s ago")
    if source["lease_s"] is not None:
        parts.append(
            f"holds for {source['lease_s']:.0f} s" if source["lease_s"] else "what it saw is not known any more"
        )
    return "; ".join(parts)


def _github(figures: dict[str, Any]) -> str:
    """What GitHub lets us spend, in words; takes out of `figures` what it shows."""
    names = ("branches", "points_hour", "remaining", "limit", "resets")
    branches, points, remaining, limit, resets = (figures.pop(f"github_{name}", "") for name in names)
    if branches == "":
        return ""
    left = f"; {remaining} of {limit} left until {resets}" if limit != "" else "; without a limit"
    return f"github: {branches} branches, {points} points used here in the last hour{left}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    uptime = row.get("uptime_s", 0.0)
    state = row["state"].lower()
    if row.get("says") not in (None, "running"):
        state = f"{state} ({row['says']})"
    return (
        row["name"],
        state,
        str(row["pid"] or "-"),
        _span(uptime) if uptime else "-",
        f"{row['rss'] / 2**20:.1f} MB" if "rss" in row else "-",
        f"{row['cpu_s'] / uptime:.1%}" if uptime and "cpu_s" in row else "-",
        str(row.get("fds", "-")),
        f"{row['beat_age_s']:.1f} s" if "beat_age_s" in row else "-",
    )


def _span(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours // 24}d {hours % 24}h" if hours >= 24 else f"{hours}h {minutes % 60}m"
    return f"{minutes}m {int(seconds % 60)}s" if minutes else f"{seconds:.0f}s"


def _figure(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
