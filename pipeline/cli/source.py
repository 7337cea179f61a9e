"""`treewire source`: databases of other tools that treewire reads along. It needs the home, not the deployment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from pipeline.bridges import factory_factory
from pipeline.bridges.foreign import OWN, Known, Picture, plan
from pipeline.catalog import Catalog
from pipeline.catalog.ids import shown
from pipeline.cli.project import as_json, opened, print_json, print_table
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.place import OperatorError
from pipeline.runtime.settings import Settings
from pipeline.sources import databases
from pipeline.sources.databases import NAME, Configured, Unreadable

PRODUCER: Final = "treewire source remove"


@click.group()
def source() -> None:
    """Read the databases of other tools along: their workspaces, pull requests, checks and sessions.

    Nothing is ever written to them. Their workspaces become those of the project that has the same repository; one
    whose worktree treewire follows already is that workspace.
    """


@source.command("add")
@click.argument("name")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--mapping",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A TOML file that says what the tables and columns are.",
)
@as_json
@click.pass_obj
def add(settings: Settings, name: str, path: Path | None, mapping: Path | None, as_json: bool) -> None:
    """Follow a database: `add factory-factory [PATH]`, or `add NAME --mapping FILE` for any other tool's.

    Without PATH, factory-factory's is looked for where it keeps it: $DATABASE_PATH, $BASE_DIR/data.db, or
    ~/factory-factory/data.db. The mapping is copied; add it again after a change. A deployment that runs notices.
    """
    if not NAME.fullmatch(name):
        raise click.BadParameter("is no name: at most 32 small letters, digits and dashes", param_hint="NAME")
    if mapping is not None:
        if path is not None:
            raise click.UsageError("PATH and --mapping exclude each other: the mapping names its database.")
        text = _text(mapping)
    elif name == factory_factory.NAME:
        text = databases.of_factory_factory(_factory_factory(path))
    else:
        raise click.UsageError(
            f"treewire knows {factory_factory.NAME} and no {name}: describe its tables in a file and give it by "
            "--mapping; there is an example in config/examples/mapping.toml."
        )
    try:
        found = databases.understood(name, text)
    except Unreadable as error:
        raise click.ClickException(f"{mapping or name}: {error}") from None
    survey = _survey(settings, found)
    if survey["problem"]:
        raise click.ClickException(survey["problem"])
    databases.save(settings.home, name, text)
    if as_json:
        print_json(survey)
    else:
        click.echo(f"Added {name} ({shown(found.where)}).")
        _print_survey(survey)


@source.command("list")
@as_json
@click.pass_obj
def list_sources(settings: Settings, as_json: bool) -> None:
    """List the databases that are followed."""
    found, wrong = databases.configured(settings.home)
    rows: list[dict[str, Any]] = [
        {"name": one.name, "tool": one.tool, "database": shown(one.where), "problem": ""} for one in found.values()
    ]
    rows += [{"name": name, "tool": "", "database": "", "problem": why} for name, why in wrong.items()]
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("No databases of other tools. Add one: treewire source add factory-factory")
    else:
        cells = [(row["name"], row["tool"], row["database"] or shown(row["problem"])) for row in rows]
        print_table(("SOURCE", "TOOL", "DATABASE"), cells)


@source.command("check")
@click.argument("name", required=False)
@as_json
@click.pass_context
def check(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """Read the databases once (or only NAME's), and show what comes of it. Nothing is told or written.

    Exit code: 0 all can be read, 1 one cannot.
    """
    settings: Settings = ctx.obj
    found, wrong = databases.configured(settings.home)
    if name is not None and name not in found and name not in wrong:
        raise click.ClickException(_unknown(name, [*found, *wrong]))
    surveys = [_survey(settings, one) for one in found.values() if name in (None, one.name)]
    surveys += [_empty(one, why) for one, why in wrong.items() if name in (None, one)]
    if as_json:
        print_json(surveys)
    elif not surveys:
        click.echo("No databases of other tools. Add one: treewire source add factory-factory")
    for survey in [] if as_json else surveys:
        click.echo(f"{survey['name']}: {survey['problem'] or survey['database']}")
        _print_survey(survey)
    ctx.exit(1 if any(survey["problem"] for survey in surveys) else 0)


@source.command("remove")
@click.argument("name")
@as_json
@click.pass_obj
def remove(settings: Settings, name: str, as_json: bool) -> None:
    """Follow NAME's database no longer. Workspaces that are there through it alone are archived."""
    found, wrong = databases.configured(settings.home)
    if name not in found and name not in wrong:
        raise click.ClickException(_unknown(name, [*found, *wrong]))
    databases.forget(settings.home, name)
    archived = []
    with opened(settings) as catalog:
        listed = {target.workspace for target in catalog.targets()}
        now = now_ns()
        for one in catalog.workspaces():
            if one.id.startswith(name + OWN) and one.id not in listed:
                catalog.archive_workspace(one.id, Stamp(now, now, CLOCK), wall_ms(), PRODUCER)
                archived.append(one.id)
    if as_json:
        print_json({"name": name, "removed": True, "archived": archived})
    else:
        also = f", and archived {len(archived)} of its workspaces" if archived else ""
        click.echo(f"Removed {name}{also}; its database was not touched.")


# ── finding and reading ──────────────────────────────────────────────────────────────────────────


def _factory_factory(path: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    if path is not None:
        found = path
    elif environ.get("DATABASE_PATH"):
        found = Path(environ["DATABASE_PATH"])
    elif environ.get("BASE_DIR"):
        found = Path(environ["BASE_DIR"]) / "data.db"
    else:
        found = Path("~/factory-factory/data.db")
    found = found.expanduser().absolute()
    if not found.is_file():
        hint = "correct the path" if path else "give its path: treewire source add factory-factory PATH"
        raise click.ClickException(f"There is no database {shown(str(found))}: {hint}.")
    return found


def _text(mapping: Path) -> str:
    try:
        return mapping.read_text()
    except (OSError, UnicodeError) as error:
        raise click.ClickException(f"{mapping} cannot be read: {error}") from None


def _survey(settings: Settings, one: Configured) -> dict[str, Any]:
    """What a first reading of the database would come to."""
    survey = {**_empty(one.name), "tool": one.tool, "database": shown(one.where)}
    try:
        tables = databases.read(one)
    except OperatorError as error:
        return {**survey, "problem": str(error)}
    picture = one.native.picture(tables.rows)
    with opened(settings) as catalog:
        workspaces, planned = _planned(catalog, one.name, picture)
    survey |= {
        "schema": tables.schema,
        "rows": {table: len(rows) for table, rows in tables.rows.items()},
        "workspaces": workspaces,
        "skipped": planned.skipped,
        "unfollowed": sorted(shown(path) for path in _unfollowed(picture, settings)),
        "notes": [*planned.problems, *(f"{table} has more rows than are read" for table in tables.cut)],
    }
    return survey


def _planned(catalog: Catalog, name: str, picture: Picture) -> tuple[list[dict[str, Any]], Any]:
    known = [Known(w.id, w.project, w.incarnation, w.path, w.phase == "archived") for w in catalog.workspaces("", True)]
    projects = {project.path: project.id for project in catalog.projects()}
    planned = plan(name, picture, known, projects, {}, os.path.realpath)
    there = {one.id for one in known}
    rows: dict[str, dict[str, Any]] = {}
    for say in planned.says:
        row = rows.setdefault(
            say.target.id,
            {"workspace": say.target.id, "project": say.target.project, "new": say.target.id not in there},
        )
        row[say.group] = {key: value for key, value in say.event.fields.items() if value is not None}
    return list(rows.values()), planned


def _unfollowed(picture: Picture, settings: Settings) -> set[str]:
    with opened(settings) as catalog:
        followed = {project.path for project in catalog.projects()}
    return {path for path in picture.projects.values() if os.path.realpath(path) not in followed}


def _empty(name: str, problem: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "tool": "",
        "database": "",
        "problem": problem,
        "schema": "",
        "rows": {},
        "workspaces": [],
        "skipped": 0,
        "unfollowed": [],
        "notes": [],
    }


def _print_survey(survey: dict[str, Any]) -> None:
    if survey["problem"]:
        return
    if survey["schema"]:
        click.echo(f"  schema: {survey['schema']}")
    for row in survey["workspaces"]:
        life = row.get("life", {})
        what = "new" if row["new"] else "attached"
        click.echo(
            f"  {what}: {row['workspace']} in {row['project']}: {life.get('name', '')} ({life.get('phase', '')})"
        )
    if survey["skipped"]:
        click.echo(f"  left out: {survey['skipped']}, archived or of a repository that is not followed")
    for path in survey["unfollowed"]:
        click.echo(f"  not followed: {path}; `treewire project add {path}` would do it")
    for note in survey["notes"]:
        click.echo(f"  note: {note}")


def _unknown(name: str, known: list[str]) -> str:
    there = f"there are {', '.join(sorted(known))}" if known else "there is none"
    return f"There is no source {name!r}; {there}. `treewire source list` lists them."
