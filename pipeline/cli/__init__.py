"""The operator's commands. Each is imported when it is called, since most of what they need the others do not."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pipeline.runtime.place import OperatorError
from pipeline.runtime.settings import Settings

_COMMANDS = {
    "up": ("pipeline.cli.up:up", "Start treewire and follow the repositories at PATH."),
    "down": ("pipeline.cli.down:down", "Stop treewire."),
    "status": ("pipeline.cli.status:status", "Show what runs, and how it fares."),
    "doctor": ("pipeline.cli.doctor:doctor", "Check that this host is fit to run treewire."),
    "project": ("pipeline.cli.project:project", "Say which repositories treewire follows."),
    "workspace": ("pipeline.cli.project:workspace", "See and archive workspaces; each worktree is one."),
    "source": ("pipeline.cli.source:source", "Read the databases of other tools along."),
    "token": ("pipeline.cli.token:token", "Give tokens to people and programs, and take them back."),
    "watch": ("pipeline.cli.watch:watch", "Watch the board in this terminal, or a project as lines."),
    "tap": ("pipeline.cli.tap:tap", "Watch every look, delta and job as they happen."),
    "replay": ("pipeline.cli.tap:replay", "Rebuild the state from a recording, and compare."),
    "explain": ("pipeline.cli.explain:explain", "Say why a workspace is shown as it is."),
    "demo": ("pipeline.cli.demo:demo", "Show treewire at work, with agents that are played by a script."),
    "hooks": ("pipeline.cli.hooks:hooks", "Make agents report what they do."),
    "report": ("pipeline.cli.report:report", "Report the state of an agent session."),
    "run": ("pipeline.cli.run:run", "Run one process in the foreground, as supervisord does."),
}
_MISUSE = 2


class _Lazy(click.Group):
    """Imports a command when it is called, gives every leaf ``--home``, and turns our errors into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        _give_home(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            click.echo(f"treewire: {error}", err=True)
            ctx.exit(_MISUSE)


def _give_home(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _give_home(inner)
    elif not any(param.name == "home" for param in command.params):
        command.params.append(_home(_load))


def _home(callback: Any) -> click.Option:
    return click.Option(
        ["--home"],
        type=click.Path(path_type=Path, file_okay=False),
        expose_value=False,
        is_eager=True,
        callback=callback,
        help="Where this deployment lives. [default: $TREEWIRE_HOME, or treewire in the user's state directory]",
    )


def _load(ctx: click.Context, _: click.Parameter, home: Path | None) -> None:
    """Settings that the caller brought along hold, unless the command line names a home."""
    named = home or ctx.meta.get("treewire.home")
    if not ctx.resilient_parsing and (named or not isinstance(ctx.obj, Settings)):
        ctx.obj = Settings.load(named)


def _remember(ctx: click.Context, _: click.Parameter, home: Path | None) -> None:
    ctx.meta["treewire.home"] = home


@click.group(cls=_Lazy, params=[_home(_remember)], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="treewire", message="treewire %(version)s")
def main() -> None:
    """The live state of every git worktree that coding agents work in, pushed to every screen as it changes.

    Exit codes: 0 well, 1 failed or degraded, 2 wrong use or wrong settings, 3 not running.
    """
