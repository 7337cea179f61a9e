"""`treewire project` and `treewire workspace`: what treewire follows. They need the database, not the deployment."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from pipeline import catalog as catalogs
from pipeline import gitdir
from pipeline.catalog import Added, Catalog, CatalogUnavailable, Project, Workspace
from pipeline.catalog.ids import shown
from pipeline.cli import deployment, find
from pipeline.domain.model import Look, Stamp
from pipeline.gitdir import GitDirError
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources.discovery import Repository, Unreadable, repositories_in
from pipeline.sources.discovery import find as find_worktrees

_TELL_S = 1.0
_TELL_AGAIN_S = 0.005

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@contextmanager
def opened(settings: Settings) -> Iterator[Catalog]:
    try:
        catalog = catalogs.open(settings)
        try:
            yield catalog
        finally:
            catalog.close()
    except CatalogUnavailable as error:
        raise click.ClickException(str(error)) from None


# ── projects ─────────────────────────────────────────────────────────────────────────────────────


@click.group()
def project() -> None:
    """Say which repositories treewire follows."""


@project.command("add")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it; the folder's name otherwise.")
@click.option("--base", help="The branch that worktrees are measured against; origin's default otherwise.")
@as_json
@click.pass_obj
def add(settings: Settings, path: Path, name: str | None, base: str | None, as_json: bool) -> None:
    """Follow the repository at PATH, with all of its worktrees.

    PATH may be any worktree of it, or a bare repository. If it is a folder of repositories, each one directly in it
    becomes a project. Adding what is there already is fine: --name and --base change what it is called and measured
    against, and an empty one goes back to the default. After `project remove` its workspaces come back, but for those
    that were archived by hand.
    """
    for option, text in (("--name", name), ("--base", base)):
        if text and not text.isprintable():
            raise click.BadParameter("holds a character that cannot be shown", param_hint=option)
    repositories = _repositories(path)
    if name is not None and len(repositories) > 1:
        raise click.UsageError(f"{path} is a folder of {len(repositories)} repositories: --name can name only one.")
    for repository in repositories if base else ():
        _check_base(repository, base or "")
    report = _add(settings, repositories, name, base)
    if as_json:
        print_json(report)
        return
    for row in report:
        click.echo(_added(row))
        if row["problem"]:
            click.echo(f"  Its worktrees cannot be listed now: {row['problem']}", err=True)


@project.command("list")
@as_json
@click.pass_obj
def list_projects(settings: Settings, as_json: bool) -> None:
    """List the repositories that treewire follows."""
    with opened(settings) as catalog:
        projects = catalog.projects()
        numbers = {project.id: 0 for project in projects}
        for workspace in catalog.workspaces():
            numbers[workspace.project] += 1
    if as_json:
        print_json([{**_told(project), "workspaces": numbers[project.id]} for project in projects])
    elif not projects:
        click.echo("No projects yet. Add one: treewire project add PATH")
    else:
        rows = [(p.id, p.name, str(numbers[p.id]), p.base or "(default)", shown(p.path)) for p in projects]
        print_table(("PROJECT", "NAME", "WORKSPACES", "BASE", "PATH"), rows)


@project.command("remove")
@click.argument("project_or_path")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_obj
def remove(settings: Settings, project_or_path: str, yes: bool, as_json: bool) -> None:
    """Follow PROJECT_OR_PATH (an id, a name or a path) no longer. Nothing on disk is touched."""
    with opened(settings) as catalog:
        found = find.project(catalog, project_or_path)
        if not yes and not _confirmed(f"Stop following {found.id} ({shown(found.path)})?"):
            raise click.Abort
        now = now_ns()
        looks = catalog.remove_project(found.id, Stamp(now, now, CLOCK), wall_ms())
    _tell(settings, looks)
    if as_json:
        print_json({**_told(found), "archived": [look.workspace for look in looks]})
    else:
        click.echo(f"Removed {found.id} with {_count(len(looks), 'workspace')}; nothing on disk was touched.")


def add_paths(settings: Settings, paths: Sequence[Path]) -> list[str]:
    """Follow the repositories at these paths, as `project add` does; returns what to tell of each new one."""
    repositories = [repository for path in paths for repository in _repositories(path)]
    return [_added(row) for row in _add(settings, repositories, None, None) if row["new"]]


def _add(
    settings: Settings, repositories: Sequence[Repository], name: str | None, base: str | None
) -> list[dict[str, Any]]:
    report = []
    with opened(settings) as catalog:
        for repository in repositories:
            added = catalog.add_project(repository.path, wall_ms(), name, base)
            worktrees, problem = _discover(catalog, added.project, settings.git.deadline_ms / 1000)
            report.append({**_outcome(added), "worktrees": worktrees, "problem": problem})
    return report


def _outcome(added: Added) -> dict[str, Any]:
    """``changed`` tells what was set differently until now, and how."""
    return {**_told(added.project), "new": added.new, "changed": added.changed}


def _added(row: dict[str, Any]) -> str:
    where = f"{row['id']} ({shown(row['path'])})"
    if not row["changed"]:
        what = "Added" if row["new"] else "Already there:"
        return f"{what} {where}, {_count(row['worktrees'], 'worktree')}."
    changes = (
        f"{key} is {row[key] or '(default)'} now, and was {old or '(default)'}" for key, old in row["changed"].items()
    )
    return f"Changed {where}: {'; '.join(changes)}."


def _check_base(repository: Repository, base: str) -> None:
    """Worktrees measured against a branch that is not there would show nothing, and not say why."""
    where = shown(str(repository.path))
    try:
        if gitdir.read_branch(repository.common_dir, base) is not None:
            return
    except (GitDirError, OSError) as error:
        raise click.ClickException(f"--base cannot be checked in {where}: {error}") from None
    raise click.ClickException(f"{where} has no branch {base!r}; `git -C {where} branch -a` lists those there are.")


def _repositories(path: Path) -> list[Repository]:
    try:
        if not path.exists():
            raise click.ClickException(f"There is no {path}. Give the path of a git repository.")
        if not path.is_dir():
            raise click.ClickException(f"{path} is not a folder. Give the path of a git repository.")
        found = repositories_in(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}. Check its permissions.") from None
    if found:
        return found
    around = repository_of(path.absolute())
    if around is None:
        raise click.ClickException(
            f"{path} is not a git repository, and there is none directly in it. Run `git init` there, or give the "
            "top folder of a worktree."
        )
    try:
        gitdir.resolve(around)
    except (GitDirError, OSError) as error:
        raise click.ClickException(f"{around} is no sound git repository: {error}") from None
    raise click.ClickException(f"{path} lies inside the repository {around}: give that one.")


def repository_of(path: Path) -> Path | None:
    """The top of the worktree that ``path`` is in."""
    return next((place for place in (path, *path.parents) if (place / ".git").exists()), None)


def _discover(catalog: Catalog, project: Project, deadline_s: float) -> tuple[int, str]:
    """The number of worktrees, as they are now; without a deployment nobody else would look."""
    try:
        found = find_worktrees(project, deadline_s)
    except Unreadable as error:
        return 0, str(error)
    catalog.upsert_worktrees(project.id, found.worktrees, found.stamp, wall_ms(), found.unsure)
    return len(found.worktrees), " ".join(found.unsure.values())


# ── workspaces ───────────────────────────────────────────────────────────────────────────────────


@click.group()
def workspace() -> None:
    """See and archive workspaces; each worktree is one."""


@workspace.command("list")
@click.option("--project", "project_or_path", default="", help="Only those of this project (id or path).")
@click.option("--archived", is_flag=True, help="Archived ones too.")
@as_json
@click.pass_obj
def list_workspaces(settings: Settings, project_or_path: str, archived: bool, as_json: bool) -> None:
    """List the workspaces that the catalog knows."""
    with opened(settings) as catalog:
        only = ""
        if project_or_path:
            only = find.project(catalog, project_or_path).id
        workspaces = catalog.workspaces(only, archived)
    if as_json:
        print_json([_told(workspace) for workspace in workspaces])
    elif not workspaces:
        click.echo("No workspaces. Add a project: treewire project add PATH")
    else:
        rows = [(w.id, w.project, w.phase or "", w.branch or "(detached)", shown(w.path or "")) for w in workspaces]
        print_table(("WORKSPACE", "PROJECT", "PHASE", "BRANCH", "PATH"), rows)


@workspace.command("archive")
@click.argument("workspace_or_path")
@as_json
@click.pass_obj
def archive(settings: Settings, workspace_or_path: str, as_json: bool) -> None:
    """Show WORKSPACE_OR_PATH (an id, a name or a path) no longer.

    It stays archived until its worktree is removed and made anew.
    """
    with opened(settings) as catalog:
        found = find.workspace(catalog, workspace_or_path)
        now = now_ns()
        look = catalog.archive_workspace(found.id, Stamp(now, now, CLOCK), wall_ms(), "treewire workspace archive")
    _tell(settings, [] if look is None else [look])
    if as_json:
        print_json({"id": found.id, "project": found.project, "archived": True, "new": look is not None})
    else:
        click.echo(f"Archived {found.id}." if look is not None else f"{found.id} is archived already.")


# ── telling ───────────────────────────────────────────────────────────────────────────────────────


def _tell(settings: Settings, looks: Sequence[Look]) -> None:
    """Send a deployment that runs what the catalog has got already, so that nobody waits for the next census.

    It matters most where most is removed: a census that alone finds so much gone must say so twice.
    """
    if not looks or not deployment.hears(settings):
        return
    from pipeline import bus

    ingress = bus.Ingress(settings.run_dir)
    deadline = time.monotonic() + _TELL_S
    try:
        sent = 0
        while sent < len(looks) and time.monotonic() < deadline:
            sent += ingress.send_all(looks[sent:])
            if sent < len(looks):
                time.sleep(_TELL_AGAIN_S)  # not connected yet, or full; what does not go comes with a census
    finally:
        ingress.close()
        bus.close()


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise click.UsageError("There is nobody to ask: say --yes where there is no terminal.") from None


# ── output ───────────────────────────────────────────────────────────────────────────────────────


def _told(row: Project | Workspace) -> dict[str, Any]:
    told = msgspec.structs.asdict(row)
    if told["path"] is not None:
        told["path"] = shown(told["path"])
    return told


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_json(what: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(what), indent=2).decode())


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
