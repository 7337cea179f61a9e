"""What treewire knows: the groups of a workspace, and the looks that observe them.

A *group* is the unit that one authority observes. Each group has one immutable type here; its fields
are exactly the public ones, so what is stored is what may be seen. ``None`` means "not known".

A *look* is one source's reading of one group, with the interval in which it was read. Everything that
enters the store is a look (or a census, which is many looks and the claim that there are no others).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

# ── public enums ─────────────────────────────────────────────────────────────────────────────────

Phase: TypeAlias = Literal["new", "provisioning", "ready", "failed", "archiving", "archived"]
Operation: TypeAlias = Literal["merge", "rebase", "cherry-pick", "revert", "bisect"]
PrState: TypeAlias = Literal["draft", "open", "merged", "closed"]
Review: TypeAlias = Literal["required", "approved", "changes_requested"]
Mergeable: TypeAlias = Literal["mergeable", "conflicting", "unknown"]
CiState: TypeAlias = Literal["pending", "success", "failure", "unknown"]
RatchetState: TypeAlias = Literal[
    "idle", "ci_running", "ci_failed", "merge_conflict", "review_pending", "ready", "merged"
]
RunState: TypeAlias = Literal["starting", "running", "stopped", "failed"]
SessionState: TypeAlias = Literal["starting", "working", "idle", "waiting", "error", "exited", "unknown"]
WaitingFor: TypeAlias = Literal["permission", "question", "plan", "auth"]
GroupHealth: TypeAlias = Literal["failing"]
Column: TypeAlias = Literal["working", "waiting", "done"]

Verdict: TypeAlias = Literal[
    "applied", "confirmed", "older", "overlap", "buried", "unknown", "foreign", "old_incarnation", "wrong_key"
]

# ── groups ───────────────────────────────────────────────────────────────────────────────────────


class Group(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False, tag_field="kind"):
    """Base of all groups: immutable, compared by value, absent fields are ``None``."""


class Life(Group, frozen=True, tag="life"):
    """That the workspace exists, and what it is called. ``base`` is the branch it is measured against."""

    name: str | None = None
    phase: Phase | None = None
    branch: str | None = None
    base: str | None = None


class Git(Group, frozen=True, tag="git"):
    """Counts of what the worktree adds to its merge base; never content (requirement G4).

    ``files, insertions, deletions``: against the merge base with ``base``, committed or not, untracked
    included. ``staged, unstaged, untracked, conflicted``: numbers of files. ``ahead, behind``: commits
    against ``base``. ``head``: full object name.
    """

    head: str | None = None
    branch: str | None = None
    files: int | None = None
    insertions: int | None = None
    deletions: int | None = None
    staged: int | None = None
    unstaged: int | None = None
    untracked: int | None = None
    conflicted: int | None = None
    ahead: int | None = None
    behind: int | None = None
    operation: Operation | None = None


class Pr(Group, frozen=True, tag="pr"):
    number: int | None = None
    url: str | None = None
    state: PrState | None = None
    review: Review | None = None
    mergeable: Mergeable | None = None
    health: GroupHealth | None = None


class Ci(Group, frozen=True, tag="ci"):
    state: CiState | None = None
    passed: int | None = None
    failed: int | None = None
    pending: int | None = None
    health: GroupHealth | None = None


class Ratchet(Group, frozen=True, tag="ratchet"):
    """Automation on the pull request. ``iterating``: an auto-iteration run is going on."""

    enabled: bool | None = None
    state: RatchetState | None = None
    stalled: bool | None = None
    iterating: bool | None = None


class Terminal(Group, frozen=True, tag="terminal"):
    """``last_output``: wall clock, milliseconds; for display only."""

    active: bool | None = None
    last_output: int | None = None


class Run(Group, frozen=True, tag="run"):
    """The workspace's run script (a development server, mostly)."""

    state: RunState | None = None
    port: int | None = None


class Session(Group, frozen=True, tag="session"):
    """One agent session. ``crashed``: it exited although nobody ended it."""

    provider: str | None = None
    name: str | None = None
    model: str | None = None
    state: SessionState | None = None
    waiting_for: WaitingFor | None = None
    crashed: bool | None = None


class Status(Group, frozen=True, tag="status"):
    """Derived, never observed: see ``status.derive``."""

    code: str | None = None
    column: Column | None = None
    needs_user: bool | None = None


Value: TypeAlias = Life | Git | Pr | Ci | Ratchet | Terminal | Run | Session

SESSION_PREFIX = "session:"
# How the producer of a session's look is named if it holds only while the process that looks is heard of.
LEASED = "live:"
KINDS: dict[str, type[Group]] = {
    "life": Life,
    "pr": Pr,
    "ci": Ci,
    "ratchet": Ratchet,
    "git": Git,
    "terminal": Terminal,
    "run": Run,
    "session": Session,
}


def kind_of(group: str) -> str:
    """``session:s1`` → ``session``; any other group is its own kind."""
    return group if group in KINDS else "session" if group.startswith(SESSION_PREFIX) else group


# ── looks ────────────────────────────────────────────────────────────────────────────────────────


class Stamp(Struct, frozen=True, array_like=True, gc=False):
    """The interval in which something was read: nanoseconds of CLOCK_BOOTTIME, and whose clock it is.

    ``began`` is taken before the read (or the transaction) starts, ``ended`` after it. An event that its
    source witnesses has ``began == ended``. ``clock`` names the clock domain; stamps of different
    domains cannot be compared.
    """

    began: int
    ended: int
    clock: str


class Key(Struct, frozen=True, array_like=True, gc=False):
    """What checks belong to: a pull request and the head commit that they ran on."""

    pr: int
    head: str


class Look(Struct, frozen=True, omit_defaults=True, tag="look", gc=False):
    """One source's reading of one group of one workspace.

    ``value`` ``None`` says that the group is gone (a session was deleted).
    ``source`` is the authority (``catalog``, ``git``, ``live``) and decides what the look may touch;
    ``producer`` says in words who reported it, for explain.
    ``run`` and ``seq``: the producer's run and its own counter in it. ``domain`` and ``revision``: the
    store that the row came from and the row's version there. ``key``: see `Key`; carried by ``pr`` and ``ci``.
    ``at_ms``: wall clock at which the value became what it is, if the source knows; for display only.
    """

    project: str
    workspace: str
    group: str
    value: Value | None
    stamp: Stamp
    source: str
    incarnation: int = 1
    producer: str = ""
    run: str = ""
    seq: int | None = None
    domain: str = ""
    revision: int | None = None
    key: Key | None = None
    at_ms: int | None = None


class Census(Struct, frozen=True, omit_defaults=True, tag="census"):
    """One poll of a catalog: these looks, all read in ``stamp``, and, if ``complete``, no others.

    ``domain`` is the identity of the database that was read; ``projects`` are the ids of all projects in it.
    ``unread``: workspaces that are there but hold something that could not be read; they are not absent.
    """

    stamp: Stamp
    source: str
    domain: str
    projects: list[str]
    looks: list[Look]
    complete: bool = True
    unread: list[str] = []
