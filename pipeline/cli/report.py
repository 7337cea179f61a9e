"""`treewire report`: one event from a shell, and the hooks of agents that know commands only."""

from __future__ import annotations

import json
import os
from typing import Any, Final, get_args

import click

from pipeline.bridges.event import ID
from pipeline.cli import herald
from pipeline.domain.model import SESSION_PREFIX, SessionState, WaitingFor
from pipeline.runtime.settings import Settings

AGENTS: Final = ("claude", "codex", "gemini")
NOBODY: Final = "report"
PATIENCE_S: Final = 25.0
ACCEPTED: Final = 202


@click.command()
@click.option(
    "--workspace",
    "-w",
    default=".",
    show_default=True,
    help="A folder in the worktree; or the workspace's id, with --project.",
)
@click.option("--project", "-p", help="The project's id, where --workspace is an id.")
@click.option("--state", type=click.Choice(get_args(SessionState)), help="What the session does.")
@click.option("--kind", type=click.Choice(get_args(WaitingFor)), help="What it waits for; only with --state waiting.")
@click.option("--session", default=NOBODY, show_default=True, help="Which session: any id of your own.")
@click.option("--provider", help="Whose agent it is.")
@click.option("--model", help="The model that it uses.")
@click.option("--name", help="What to call the session.")
@click.option("--crashed", is_flag=True, help="With --state exited: nobody ended it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--stdin",
    "agent",
    type=click.Choice(AGENTS),
    help="Read a hook of this agent from standard input, or from HOOK; says nothing and never fails.",
)
@click.argument("hook", required=False)
@click.pass_obj
def report(settings: Settings, /, agent: str | None, hook: str | None, as_json: bool, **given: Any) -> None:
    """Report the state of an agent session.

    For agents and scripts that treewire does not know by itself. For Claude Code, Codex and Gemini CLI `treewire hooks
    install` makes them report on their own. What is not given stays as it was.
    """
    if agent is not None:
        herald.quietly(agent, str(settings.home), hook)
        return
    if hook is not None:
        raise click.UsageError(f"{hook!r} goes with --stdin only: the hook of an agent, as JSON.")
    body = _event(**given)
    status, told = _sent(settings, body)
    if status != ACCEPTED:
        raise click.ClickException(str(told.get("message", f"the gateway answered {status}")))
    if as_json:
        click.echo(json.dumps({"session": given["session"], "fields": body["fields"], **told}, indent=2))
    else:
        click.echo(f"Reported: the session {given['session']} is {given['state']}.")


def _event(
    workspace: str,
    project: str | None,
    state: str | None,
    kind: str | None,
    session: str,
    provider: str | None,
    model: str | None,
    name: str | None,
    crashed: bool,
) -> dict[str, Any]:
    if state is None:
        raise click.UsageError("Say what the session does: --state working, for instance. --stdin is for hooks.")
    if kind is not None and state != "waiting":
        raise click.BadParameter(f"goes with --state waiting, and not with {state}", param_hint="--kind")
    if crashed and state != "exited":
        raise click.BadParameter(f"goes with --state exited, and not with {state}", param_hint="--crashed")
    if not ID.fullmatch(session):
        raise click.BadParameter("is not an id: letters, digits and . _ : - only", param_hint="--session")
    place = {"workspace": workspace, "project": project}
    if project is None:
        if not os.path.isdir(workspace):
            raise click.BadParameter(
                f"{workspace!r} is no folder; if it is an id, give --project too", param_hint="--workspace"
            )
        place = {"workspace": os.path.abspath(workspace)}
    named = {"provider": provider, "model": model, "name": name}
    fields: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    fields |= {"state": state, "waiting_for": kind, "crashed": crashed}
    return {**place, "group": SESSION_PREFIX + session, "fields": fields, "source": "report"}


def _sent(settings: Settings, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    from pipeline.cli.deployment import not_running

    try:
        status, told = herald.post(str(settings.home), "/v1/events", json.dumps(body).encode(), PATIENCE_S)
    except herald.NotThere:
        raise not_running(settings) from None
    except OSError as error:
        raise click.ClickException(f"the gateway does not answer ({error}): `treewire status` says more") from None
    try:
        return status, dict(json.loads(told))
    except ValueError:
        return status, {}
