"""Which project or workspace an operator means: an id, a name or a path, and what there is if it is none of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import click

from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, CatalogUnavailable, Project, Workspace
from pipeline.runtime.settings import Settings

_SHOWN = 5


class Unknown(click.ClickException):
    """The catalog knows nothing of that name."""


class Meant(NamedTuple):
    id: str
    unknown: Unknown | None


def project(catalog: Catalog, word: str) -> Project:
    """The project of this id, path or unique name.

    Raises `Unknown`, or `click.ClickException` if it could be several.
    """
    if found := catalog.project(word) or catalog.project(os.path.realpath(word)):
        return found
    known = catalog.projects()
    named = [row for row in known if row.name == word]
    if len(named) == 1:
        return named[0]
    if named:
        raise _several(word, "projects", (row.id for row in named))
    there = [word for row in known for word in (row.id, row.name)]
    raise _nobody("project", word, there, "treewire project list")


def workspace(catalog: Catalog, word: str) -> Workspace:
    """The workspace of this id, unique name or path; of one name a live one before archived ones.

    Raises `Unknown`, or `click.ClickException` if it could be several.
    """
    if found := catalog.workspace(word):
        return found
    if os.path.exists(word) and (at := catalog.workspace_at(word)) is not None:
        return at
    known = catalog.workspaces(archived=True)
    named = [row for row in known if row.name == word]
    named = [row for row in named if row.phase != "archived"] or named
    if len(named) == 1:
        return named[0]
    if named:
        raise _several(word, "workspaces", (row.id for row in named))
    there = [word for row in known if row.phase != "archived" for word in (row.id, row.name or "")]
    raise _nobody("workspace", word, there, "treewire workspace list --archived")


def id_of(settings: Settings, which: Callable[[Catalog, str], Project | Workspace], word: str) -> Meant:
    """The id that is meant, by `project` or `workspace`. What the catalog does not know, or cannot be asked, those that
    run may still know: then it is the word itself, and the error to show should they not."""
    try:
        catalog = catalogs.open(settings)
        try:
            return Meant(which(catalog, word).id, None)
        finally:
            catalog.close()
    except Unknown as error:
        return Meant(word, error)
    except CatalogUnavailable:
        return Meant(word, None)


def _several(word: str, nouns: str, ids: Iterable[str]) -> click.ClickException:
    return click.ClickException(f"{word!r} names several {nouns}, say which: {', '.join(ids)}")


def _nobody(noun: str, word: str, there: Sequence[str], list_them: str) -> Unknown:
    there = [name for name in dict.fromkeys(there) if name]
    near = difflib.get_close_matches(word, there, n=1)
    if near:
        hint = f"did you mean {near[0]!r}? "
    elif there:
        more = "" if len(there) <= _SHOWN else ", …"
        hint = f"there are {', '.join(there[:_SHOWN])}{more}; " if len(there) > 1 else f"there is {there[0]}; "
    else:
        hint = ""
    return Unknown(f"There is no {noun} {word!r}: {hint}`{list_them}` shows those there are.")
