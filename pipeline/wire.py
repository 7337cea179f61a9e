"""Every message on the bus, as tagged unions in msgpack; one union per socket.

    ingress   PUSH→PULL       Look | Census | Interest | Alive
    feed      XPUB→SUB        Delta | Gone | Heartbeat | Relook      (topic frame, then the message)
    query     DEALER→ROUTER   Since | Explain → Image | Delta | Explained | Missing
    hints     PUSH→PULL       Hint
    jobs      DEALER→ROUTER   Ready | Done → Job
    tap       XPUB→SUB        Ruled | Counted | Delta | Gone | Heartbeat | JobEvent

A message that does not decode is the peer's fault: it is counted and dropped, and nothing else happens.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from pipeline.domain.model import Census, Git, Look, Verdict

# ── ingress ──────────────────────────────────────────────────────────────────────────────────────


class Interest(Struct, frozen=True, tag="interest"):
    """A gateway says which projects somebody looks at, every few seconds; it lapses if not repeated."""

    who: str
    projects: list[str]


class Alive(Struct, frozen=True, tag="alive"):
    """The producers of leased looks are at it, every few seconds: what they said last still holds."""

    who: str


Ingress: TypeAlias = Look | Census | Interest | Alive

# ── feed ─────────────────────────────────────────────────────────────────────────────────────────


class Delta(Struct, frozen=True, tag="delta", rename={"from_": "from"}):
    """What changed in a project after version ``from`` up to ``to``, as a JSON Merge Patch over its workspaces."""

    project: str
    epoch: str
    from_: int
    to: int
    patch: dict[str, Any]


class Gone(Struct, frozen=True, tag="gone"):
    """The project no longer exists."""

    project: str
    epoch: str


class Head(Struct, frozen=True, array_like=True):
    """Where a project stands: its version, the state hash at that version, whether a census confirmed it, and whether
    a client looks on."""

    version: int
    hash: str
    complete: bool
    watched: bool = False


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """Each second, in the same ordered stream as the deltas: every project's head.

    ``census_ns``: boot clock at which the last complete census ended that was taken whole, 0 before the first. One
    that is held as a mass delete is not among them until it is confirmed.
    """

    epoch: str
    n: int
    boot_ns: int
    heads: dict[str, Head]
    census_ns: int = 0
    entries: int = 0
    live: int = 0


class Relook(Struct, frozen=True, tag="relook"):
    """Looks at this group overlapped and disagreed: its owner shall read it again. Group ``*``: a whole census."""

    workspace: str
    group: str


Feed: TypeAlias = Delta | Gone | Heartbeat | Relook

# ── query ────────────────────────────────────────────────────────────────────────────────────────


class Since(Struct, frozen=True, tag="since"):
    """Ask for what came after a cursor; another epoch or version -1 asks for everything."""

    id: int
    project: str
    epoch: str = ""
    version: int = -1


class Explain(Struct, frozen=True, tag="explain"):
    id: int
    workspace: str
    group: str = ""


class Image(Struct, frozen=True, tag="image"):
    """A whole project with the version of every field, so that a follower can itself answer any cursor.

    ``entries``: workspace → group → field → [value, version]; nulls are kept where a field had a value before.
    ``gone``: workspace → [version at which it left, group → fields that it had].
    """

    id: int
    project: str
    epoch: str
    version: int
    floor: int
    hash: str
    complete: bool
    entries: dict[str, dict[str, dict[str, tuple[Any, int]]]]
    gone: dict[str, tuple[int, dict[str, list[str]]]]


class Changes(Struct, frozen=True, tag="changes"):
    """The answer to `Since` where the cursor could be served: one delta."""

    id: int
    delta: Delta


class Missing(Struct, frozen=True, tag="missing"):
    """There is no such project or workspace (any more)."""

    id: int


class Ruled(Struct, frozen=True, omit_defaults=True, tag="ruled"):
    """A look and what became of it. ``times``: how many like it came in a row (explain folds them)."""

    look: Look
    verdict: Verdict
    cause: str
    wall_ms: int
    times: int = 1


class Explained(Struct, frozen=True, tag="explained"):
    """The last rulings per group, oldest first, and the state as it stands."""

    id: int
    project: str
    workspace: str
    version: int
    state: dict[str, Any]
    rulings: dict[str, list[Ruled]]


Query: TypeAlias = Since | Explain
Answer: TypeAlias = Image | Changes | Missing | Explained

# ── hints ────────────────────────────────────────────────────────────────────────────────────────


class Hint(Struct, frozen=True, tag="hint"):
    """GitHub says that something happened on this branch, or to this commit: look again. It may be lost."""

    repo: str
    branch: str = ""
    sha: str = ""


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────


class Ready(Struct, frozen=True, tag="ready"):
    """A worker is idle (again). It says so each second, which is its lease."""

    worker: str
    pid: int


class Job(Struct, frozen=True, tag="job"):
    """Look at one worktree. ``git_dir`` and ``inode`` were pinned at registration: an agent can rewrite ``.git``.

    ``base``: the branch to measure against, or empty. ``full``: look at everything, because of ``why``; otherwise only
    at ``paths``, which are relative to the worktree, with ``/``, as the file system spells them. A worker that has no
    table of the worktree, or finds that more than these paths changed, looks at everything all the same.
    """

    id: int
    workspace: str
    worktree: str
    git_dir: str
    common_dir: str
    inode: int
    base: str
    deadline_ms: int
    full: bool = True
    why: str = ""
    paths: tuple[bytes, ...] = ()


UNRESPONSIVE: Final = "unresponsive"  # begins the error of a look that was left behind in a file system


class Done(Struct, frozen=True, omit_defaults=True, tag="done"):
    """A job's outcome: either ``git``, or ``error`` with the reason in one sentence (an error is never a value).

    ``scoped``: only what changed was looked at; otherwise ``why`` says what made it a full look. ``drift``: how many
    paths a full look found to differ from the worker's table although nothing had told that they changed.
    ``spawned``: how many processes were started.
    """

    id: int
    worker: str
    workspace: str
    began: int
    ended: int
    git: Git | None = None
    error: str = ""
    cpu_ms: int = 0
    scoped: bool = False
    why: str = ""
    drift: int = 0
    spawned: int = 0


WorkerSays: TypeAlias = Ready | Done

# ── tap ──────────────────────────────────────────────────────────────────────────────────────────


class Counted(Struct, frozen=True, tag="census_taken"):
    """A census and what the store made of it."""

    source: str
    domain: str
    looks: int
    drift: dict[str, int]
    buried: list[str]
    held: bool
    wall_ms: int


class JobEvent(Struct, frozen=True, omit_defaults=True, tag="job_event"):
    """What the dispatcher does: ``queued, started, done, failed, requeued, dropped, backoff``, and why."""

    event: Literal["queued", "started", "done", "failed", "requeued", "dropped", "backoff"]
    workspace: str
    why: str
    wall_ms: int
    project: str = ""
    worker: str = ""
    took_ms: int = 0


Tap: TypeAlias = Ruled | Counted | Delta | Gone | Heartbeat | JobEvent

# ── topics ───────────────────────────────────────────────────────────────────────────────────────
# ZeroMQ matches topics by prefix, so each ends with a terminator: "p/web" would also match "p/web2".

HEARTBEAT_TOPIC: Final = b"h\0"
RELOOK_TOPIC: Final = b"r\0"


def project_topic(project: str) -> bytes:
    return b"p/" + project.encode() + b"\0"


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_ingress = msgspec.msgpack.Decoder(Ingress).decode
decode_feed = msgspec.msgpack.Decoder(Feed).decode
decode_query = msgspec.msgpack.Decoder(Query).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_hint = msgspec.msgpack.Decoder(Hint).decode
decode_worker = msgspec.msgpack.Decoder(WorkerSays).decode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_tap = msgspec.msgpack.Decoder(Tap).decode
DecodeError = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
