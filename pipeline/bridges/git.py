"""A finished git job becomes a look at `git`."""

from __future__ import annotations

from pipeline.domain.model import Look, Stamp
from pipeline.wire import Done

SOURCE = "git"


def look(done: Done, project: str, incarnation: int, clock: str, at_ms: int | None = None) -> Look | None:
    """The counts, stamped with the interval in which git read them; ``None`` for a job that failed.

    `clock`: the clock domain of ``done.began`` and ``done.ended``. A failed read is not a value, so it makes no look.
    """
    if done.git is None:
        return None
    return Look(
        project=project,
        workspace=done.workspace,
        group="git",
        value=done.git,
        stamp=Stamp(done.began, done.ended, clock),
        source=SOURCE,
        incarnation=incarnation,
        producer=_producer(done),
        at_ms=at_ms,
    )


def _producer(done: Done) -> str:
    """Who looked, at how much, and why: no part of the value, so that a look of the other sort can confirm it."""
    how = "scoped" if done.scoped else "full"
    return f"{done.worker}, {how}: {done.why}" if done.why else f"{done.worker}, {how}"
