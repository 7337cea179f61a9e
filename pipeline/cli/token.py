"""`treewire token`: who else may come in, and how far. It needs the database, not the deployment."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec

from pipeline.catalog import Catalog, Token, TokenError
from pipeline.cli import find
from pipeline.cli.project import as_json, opened, print_json, print_table
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.settings import Settings

UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_S: Final = 3650 * UNITS_S["d"]
LONGEST_NAME: Final = 80


def _seconds(_: click.Context, __: click.Parameter, given: str | None) -> int | None:
    if given is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,8})([smhdw])", given)
    if found is None:
        raise click.BadParameter(f"{given!r} is no time: write a number and s, m, h, d or w, as in 30d")
    seconds = int(found[1]) * UNITS_S[found[2]]
    if seconds > LONGEST_S:
        raise click.BadParameter(f"{given!r} is too long: leave --ttl out for a token without an end")
    return seconds


@click.group()
def token() -> None:
    """Give tokens to people and programs, and take them back.

    The token in the home stays the operator's: it opens all projects and has no end.
    """


@token.command("create")
@click.option("--project", "-p", "words", multiple=True, help="Open only this project (id, name or path); repeatable.")
@click.option("--name", default="", help="What to call it in the list; its id otherwise.")
@click.option(
    "--ttl",
    metavar="TIME",
    callback=_seconds,
    help="How long it opens anything, as in 12h or 30d. [default: without end]",
)
@click.option("--read-only", is_flag=True, help="It cannot report events.")
@as_json
@click.pass_obj
def create(
    settings: Settings, words: tuple[str, ...], name: str, ttl: int | None, read_only: bool, as_json: bool
) -> None:
    """Make a token, and print it, this once: only a hash of it is kept.

    Without --project it opens all projects, those to come too. The token alone goes to standard output.
    """
    if not name.isprintable() or len(name) > LONGEST_NAME or name != name.strip():
        raise click.BadParameter(
            f"must be at most {LONGEST_NAME} characters that can be shown, without spaces around it",
            param_hint="--name",
        )
    with _tokens(settings) as catalog:
        projects = [find.project(catalog, word).id for word in words] if words else None
        now = wall_ms()
        ends = None if ttl is None else now + ttl * 1000
        made = catalog.create_token(now, projects, name, not read_only, ends)
    if as_json:
        print_json({**_told(made.token), "token": made.secret})
        return
    one = made.token
    click.echo(f"{_called(one)} opens {_opens(one)}, {_may(one)}, {_until(one)}. It is shown only now:", err=True)
    click.echo(made.secret)


@token.command("list")
@as_json
@click.pass_obj
def list_tokens(settings: Settings, as_json: bool) -> None:
    """List the tokens, without their secrets; those that have ended for a while longer."""
    with _tokens(settings) as catalog:
        tokens = catalog.tokens()
    if as_json:
        print_json([_told(one) for one in tokens])
    elif not tokens:
        click.echo("No tokens but the operator's own, in the home. Make one: treewire token create")
    else:
        now = wall_ms()
        rows = [
            (one.id, one.name, one.state(now), _opens(one), _may(one), _until(one), _used(one.used_ms))
            for one in tokens
        ]
        print_table(("TOKEN", "NAME", "STATE", "OPENS", "MAY", "ENDS", "USED"), rows)


@token.command("revoke")
@click.argument("id_or_name")
@as_json
@click.pass_obj
def revoke(settings: Settings, id_or_name: str, as_json: bool) -> None:
    """End the token ID_OR_NAME. Requests are refused and streams are closed within moments."""
    with _tokens(settings) as catalog:
        found = catalog.revoke_token(id_or_name, wall_ms())
    if as_json:
        print_json(_told(found))
    else:
        click.echo(f"Revoked {_called(found)}.")


@contextmanager
def _tokens(settings: Settings) -> Iterator[Catalog]:
    try:
        with opened(settings) as catalog:
            yield catalog
    except TokenError as error:
        raise click.ClickException(str(error)) from None


# ── output ───────────────────────────────────────────────────────────────────────────────────────


def _told(one: Token) -> dict[str, Any]:
    return {**msgspec.structs.asdict(one), "state": one.state(wall_ms())}


def _called(one: Token) -> str:
    return one.id if one.name == one.id else f"{one.id} ({one.name})"


def _opens(one: Token) -> str:
    if one.projects is None:
        return "all projects"
    return ", ".join(one.projects) or "nothing: its projects were removed"


def _may(one: Token) -> str:
    return "reads and reports" if one.may_write else "reads only"


def _until(one: Token) -> str:
    return "without end" if one.expires_ms is None else f"until {_date(one.expires_ms)}"


def _used(at_ms: int | None) -> str:
    return "not yet" if at_ms is None else f"{_date(at_ms)} or later"


def _date(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))
