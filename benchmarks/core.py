"""Looks per second through decoding, admission, derivation, diff and encoding, in one process and without sockets.

The peer is what one would write first: decode into a dict, last arrival wins, encode the whole workspace each time.
It orders nothing, versions nothing and derives nothing; it is there to show what the rules cost.
"""

from __future__ import annotations

import random
import time
from typing import Any

import msgspec

from benchmarks import figures
from pipeline import wire
from pipeline.aggregator.writer import Writer
from pipeline.domain.model import Git, Life, Look, Run, Session, SessionState, Stamp
from pipeline.domain.store import Store

WORKSPACES = 300
LOOKS = 60_000
BATCH = 100
STATES: tuple[SessionState, ...] = ("working", "idle", "waiting")


class _Sink:
    """Encodes what is published, as a socket would have it, and drops it."""

    watched = False

    def publish(self, topic: bytes, message: object) -> None:
        wire.encode(message)


class _Silent(_Sink):
    def publish(self, topic: bytes, message: object) -> None:
        pass


def _look(kind: str, rnd: random.Random, n: int) -> Look:
    i = rnd.randrange(WORKSPACES)
    project, workspace, stamp = f"p{i % 10}", f"w{i}", Stamp(10_000 + 10 * n, 10_001 + 10 * n, "clock")
    if kind == "3-field look (run script)":
        return Look(project, workspace, "run", Run(state="running", port=n), stamp, "live")
    if kind == "session look":
        state: SessionState = rnd.choice(STATES)
        value = Session(provider="claude", name="fix the login", model="m", state=state)
        return Look(project, workspace, "session:s1", value, stamp, "catalog", run="r", seq=n)
    counts = Git("a" * 40, "fix-login", n % 17, n, n % 5, 1, 2, 3, 0, 1, 0)
    return Look(project, workspace, "git", counts, stamp, "git")


def _batches(kind: str) -> list[list[list[bytes]]]:
    rnd = random.Random(7)
    encoded = [[wire.encode(_look(kind, rnd, n))] for n in range(LOOKS)]
    return [encoded[start : start + BATCH] for start in range(0, LOOKS, BATCH)]


def _ours(batches: list[list[list[bytes]]]) -> float:
    store = Store("clock", 0)
    writer = Writer(store, "epoch", _Sink(), _Silent(), time.monotonic_ns, lambda: 1)
    for i in range(WORKSPACES):
        life = Life(name=f"w{i}", phase="ready", branch="b")
        writer.take([[wire.encode(Look(f"p{i % 10}", f"w{i}", "life", life, Stamp(1, 2, "clock"), "catalog"))]])
    began = time.process_time()
    for batch in batches:
        writer.take(batch)
    writer.beat()  # hashes what changed, as each second does
    return LOOKS / (time.process_time() - began)


def _naive(batches: list[list[list[bytes]]]) -> float:
    state: dict[str, dict[str, Any]] = {}
    began = time.process_time()
    for batch in batches:
        for frames in batch:
            look = msgspec.msgpack.decode(frames[0])
            entry = state.setdefault(look["workspace"], {})
            entry[look["group"]] = look["value"]
            msgspec.json.encode({"workspace": look["workspace"], "entry": entry})
    return LOOKS / (time.process_time() - began)


def main() -> None:
    figures.heading(f"core: {LOOKS:,} looks at {WORKSPACES} workspaces of 10 projects, batches of {BATCH}")
    for kind in ("3-field look (run script)", "session look", "git look (11 fields)"):
        batches = _batches(kind)
        ours, naive = [], []
        for _ in range(figures.ROUNDS):
            ours.append(_ours(batches))
            naive.append(_naive(batches))
        mine = figures.line(f"{kind}: treewire", ours, "looks/s", "≥ 100,000")
        theirs = figures.line(f"{kind}: last arrival wins, whole entry", naive, "looks/s")
        figures.ratio(f"{kind}: treewire / last arrival wins", mine, theirs)
