"""`treewire explain`: why does a workspace show what it shows?"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from pipeline import bus, wire
from pipeline.cli.deployment import hears, not_running
from pipeline.domain.model import KINDS, SESSION_PREFIX
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings

ANSWER_S: Final = 3.0
ASK_AGAIN_S: Final = 0.02


async def ask(run_dir: Path, workspace: str, group: str, timeout: float = ANSWER_S) -> wire.Explained | None:
    """The aggregator's rulings on a workspace; ``None`` if it does not know it. Raises `TimeoutError`."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[wire.Answer] = loop.create_future()

    def take(batch: list[wire.Answer]) -> None:
        if not answered.done():
            answered.set_result(batch[0])

    def put() -> None:
        if not answered.done() and not queries.ask(wire.Explain(1, workspace, group)):
            loop.call_later(ASK_AGAIN_S, put)  # not connected yet

    queries = bus.Queries(run_dir, take)
    try:
        put()
        answer = await asyncio.wait_for(answered, timeout)
    finally:
        queries.close()
    return answer if isinstance(answer, wire.Explained) else None


@click.command()
@click.argument("workspace")
@click.argument("group", default="")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
@click.pass_obj
def explain(settings: Settings, workspace: str, group: str, as_json: bool) -> None:
    """Tell the last looks at each GROUP of WORKSPACE, what became of each, and why.

    WORKSPACE is an id, a name, or the path of the worktree. GROUP is life, git, pr, ci, ratchet, terminal, run or
    session:<id>; without one, all are told.
    """
    from pipeline.cli import find

    check_group(group)
    found, unknown = find.id_of(settings, find.workspace, workspace)
    if not hears(settings):
        raise not_running(settings)
    try:
        explained = asyncio.run(ask(settings.run_dir, found, ""))
    except TimeoutError as error:
        raise click.ClickException(
            f"the aggregator of {settings.home} does not answer: look at `treewire status`"
        ) from error
    if explained is None:
        raise unknown or click.ClickException(f"nothing is known of workspace {workspace!r} since the last start")
    if group and group not in explained.rulings:
        raise click.ClickException(f"no look at {group!r} yet; there are looks at: {', '.join(explained.rulings)}")
    if group:
        explained = msgspec.structs.replace(explained, rulings={group: explained.rulings[group]})
    if as_json:
        click.echo(msgspec.json.encode(explained).decode())
        return
    click.echo(f"{explained.workspace} in {explained.project}, version {explained.version}")
    for name, rulings in explained.rulings.items():
        click.echo(f"\n{name}: {_shown(_public(explained.state, name))}")
        for ruled in reversed(rulings):
            click.echo("  " + _line(ruled))
    if not explained.state:
        click.echo("\nIt has no entry: it was archived, removed, or never announced.")


def check_group(group: str, hint: str = "GROUP") -> None:
    """Raise `click.BadParameter` for what is no group that is looked at; an empty one is none in particular."""
    if group == "status":
        raise click.BadParameter(
            "status is never looked at: it follows from life, pr, ci, ratchet and the sessions", param_hint=hint
        )
    kind, _, session = group.partition(":")
    if group and (kind not in KINDS or bool(session) != (kind + ":" == SESSION_PREFIX)):
        names = ", ".join(name if name != "session" else f"{SESSION_PREFIX}<id>" for name in KINDS)
        raise click.BadParameter(f"there is no group {group!r}; the groups are {names}", param_hint=hint)


def _public(state: dict[str, Any], group: str) -> Any:
    kind, _, session = group.partition(":")
    return state.get("sessions", {}).get(session) if session else state.get(kind)


def _shown(value: Any) -> str:
    if not value:
        return "nothing known"
    return " ".join(f"{name}={shown}" for name, shown in value.items() if name != "changed_at")


def _line(ruled: wire.Ruled) -> str:
    look = ruled.look
    age = ""
    if look.stamp.clock == CLOCK:
        age = f"{max(0.0, (now_ns() - look.stamp.ended) / 1e9):.1f} s ago, "
    took = (look.stamp.ended - look.stamp.began) / 1e6
    read_in = f"read in {took:.1f} ms, " if took else ""
    times = f" (×{ruled.times})" if ruled.times > 1 else ""
    at = time.strftime("%H:%M:%S", time.localtime(ruled.wall_ms / 1000))
    value = "gone" if look.value is None else _shown(_known(look.value))
    return f"{at} {ruled.verdict}{times}: {ruled.cause} [{age}{read_in}{look.producer or look.source}] {value}"


def _known(value: msgspec.Struct) -> dict[str, Any]:
    return {name: shown for name, shown in msgspec.structs.asdict(value).items() if shown is not None}
