"""`treewire demo`: a whole deployment with agents that edit, commit, ask, crash and merge, by a script."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from pipeline.cli import deployment
from pipeline.cli.demo import still as scene
from pipeline.cli.demo.house import House, deployed, house, interruptible
from pipeline.cli.demo.play import Play
from pipeline.cli.demo.script import Cast
from pipeline.cli.up import way_in


@click.command()
@click.option("--agents", type=click.IntRange(1, 2000), default=12, show_default=True, help="How many work at once.")
@click.option(
    "--speed",
    type=click.FloatRange(0.01, 1000),
    default=1.0,
    show_default=True,
    help="How many times faster than agents live.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Another number is another story.")
@click.option(
    "--events-per-second",
    type=click.FloatRange(0, 100_000),
    default=0.0,
    help="Besides, so many reports of terminal output each second.",
)
@click.option(
    "--still", "--frozen", "still", is_flag=True, help="Set up a fixed scene with every status, and leave it so."
)
@click.option("--seconds", type=click.FloatRange(0), help="End by itself after so long.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the gateway; 0 for any that is free.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="An empty folder to live in, which stays. [default: a temporary one, which does not]",
)
@click.option("--json", "as_json", is_flag=True, help="Say where it runs, and at the end what it did, as JSON lines.")
@click.pass_context
def demo(
    ctx: click.Context,
    agents: int,
    speed: float,
    seed: int,
    events_per_second: float,
    still: bool,
    seconds: float | None,
    port: int | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show treewire at work, on real repositories with agents that are played by a script.

    Agents get a worktree, edit, commit, rebase, ask for permission, crash, open pull requests, mend their checks,
    are merged and archived. Some of their reports get lost, and a census heals them. It needs nothing but git, touches
    nothing of yours, and at Ctrl-C removes all that it made. With many agents and a high speed it is a load.
    """
    cast = Cast(agents, seed)
    projects = scene.PROJECTS if still else cast.projects
    with interruptible(), house(home or ctx.meta.get("treewire.home")) as found:
        if not as_json:
            click.echo(f"Making {len(projects)} repositories in {found.repositories}, and starting treewire …")
        play = Play(found.repositories, projects)
        try:
            play.build(still)
            with deployed(found, map(play.stage.repository, projects), port):
                played = None if still else cast
                telling = partial(_say, found, as_json)
                asyncio.run(play.run(found.settings, played, speed, events_per_second, seconds, telling))
        except KeyboardInterrupt:
            pass
        _tell(play, as_json)


def _say(found: House, as_json: bool) -> None:
    settings = found.settings
    where = deployment.url(settings)
    if as_json:
        told: dict[str, Any] = {"ready": True, "url": where, "home": str(settings.home)}
        told |= {"token_path": str(settings.token_path), "repositories": str(found.repositories)}
        click.echo(msgspec.json.encode(told).decode())
        return
    click.echo(f"Ready: {where}  (Ctrl-C stops it)")
    click.echo(f"Sign in: {way_in(settings)}")
    click.echo(
        f"""Look at the board: who needs you comes first, and git's numbers follow each edit.
In another terminal, after `export TREEWIRE_HOME={settings.home}`:
  treewire tap                  every look, what became of it, and what changed
  treewire explain WORKSPACE    why a workspace stands where it stands
  treewire status               what it costs; drift counts lost reports that a census healed"""
    )


def _tell(play: Play, as_json: bool) -> None:
    did = play.did()
    if as_json:
        click.echo(msgspec.json.encode({"ready": False, **did}).decode())
    else:
        click.echo(
            f"{did['acts']} acts on worktrees, {did['reports']} reports; {did['lost']} were lost on purpose, "
            f"and a census healed {did['drift']}."
        )
