"""Looks in few words, for tests: who may say what is filled in, times are small numbers."""

from __future__ import annotations

from typing import Any

from pipeline.domain.model import Census, Git, Life, Look, Session, Stamp, Value
from pipeline.domain.store import Limits, Store

CLOCK = "here"
ELSEWHERE = "elsewhere"
WALL = 1_700_000_000_000


def stamp(began: int, ended: int | None = None, clock: str = CLOCK) -> Stamp:
    return Stamp(began, began if ended is None else ended, clock)


def look(group: str, value: Value | None, began: int, ended: int | None = None, **rest: Any) -> Look:
    """A look at `group` of workspace ``w`` in project ``web``, unless told otherwise."""
    rest.setdefault("project", "web")
    rest.setdefault("workspace", "w")
    rest.setdefault("source", "git" if group == "git" else "catalog")
    clock = rest.pop("clock", CLOCK)
    return Look(group=group, value=value, stamp=stamp(began, ended, clock), **rest)


def life(began: int, ended: int | None = None, *, name: str = "one", phase: Any = "ready", **rest: Any) -> Look:
    return look("life", Life(name=name, phase=phase), began, ended, **rest)


def git(files: int, began: int, ended: int | None = None, **rest: Any) -> Look:
    return look("git", Git(files=files), began, ended, **rest)


def session(state: Any, began: int, ended: int | None = None, *, id: str = "s", **rest: Any) -> Look:
    value = None if state is None else Session(state=state)
    return look("session:" + id, value, began, ended, **rest)


def census(
    began: int,
    ended: int,
    looks: list[Look] | None = None,
    *,
    projects: list[str] | None = None,
    domain: str = "db",
    complete: bool = True,
    clock: str = CLOCK,
) -> Census:
    """A poll of the catalog, by default of a database that holds the project ``web``."""
    return Census(
        stamp=Stamp(began, ended, clock),
        source="catalog",
        domain=domain,
        projects=["web"] if projects is None else projects,
        looks=looks or [],
        complete=complete,
    )


def store(started: int = 0, **limits: int) -> Store:
    return Store(CLOCK, started, Limits(**limits))


def told(store: Store, *looks: Look) -> list[str]:
    """Admit these looks in turn; returns the verdicts."""
    return [store.admit(one, WALL).verdict for one in looks]
