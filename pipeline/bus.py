"""The sockets of the pipeline, by role. The only module that knows ZeroMQ.

How it reads: a socket's descriptor wakes the event loop, everything that waits is drained in one batch and
handed over as a list: no task and no await per message. Under load the descriptor is left alone and the
socket is drained on a short timer instead, which costs a fraction of the wake-ups. The descriptor is
edge-triggered: after arming it, and after every send on the same socket, one more drain is needed.

What ZeroMQ drops: a PUB forgets messages for a subscriber that is over its high-water mark, and the last
ones leave no gap. So nothing here is a promise of delivery; heartbeats, cursors and censuses are.

A second bind on an ipc path silently steals it. That there is only one binder of a name is seen to before this
module is reached: a process holds the lock on its beat file for as long as it lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import zmq

from pipeline import wire
from pipeline.domain.model import Look
from pipeline.runtime.clock import now_ns

MAX_MESSAGE: Final = 16 << 20
HIGH_WATER: Final = 20_000
TAP_HIGH_WATER: Final = 2_000
HINTS_HIGH_WATER: Final = 1_000
BATCH: Final = 1_000
PACE_S: Final = 0.001
BUSY_NS: Final = 2_000_000
LINGER_MS: Final = 300
SOCKETS: Final = ("ingress", "feed", "query", "jobs", "tap", "jobs-tap", "hints")


def endpoint(run_dir: Path, name: str) -> str:
    return f"ipc://{run_dir / name}.sock"


def _socket(kind: int, receive: int = HIGH_WATER, send: int = HIGH_WATER) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.RCVHWM, receive)
    socket.setsockopt(zmq.SNDHWM, send)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    return socket


class Reader:
    """Drains a socket inside the running loop and hands over batches of messages (lists of frames)."""

    def __init__(self, socket: zmq.Socket[bytes], take: Callable[[list[list[bytes]]], object]) -> None:
        self._socket = socket
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._armed = False
        self._last_ns = 0
        self._arm()

    def poke(self) -> None:
        """Look once more: the descriptor does not tell of what arrived during a send."""
        if self._timer is None:
            self._timer = self._loop.call_soon(self._drain)

    def close(self) -> None:
        if self._armed:
            self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
        self._armed, self._timer = False, None

    def _arm(self) -> None:
        if not self._armed:
            self._loop.add_reader(self._descriptor, self._drain)
            self._armed = True
        self.poke()

    def _drain(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch: list[list[bytes]] = []
        receive = self._socket.recv_multipart
        try:
            while len(batch) < BATCH:
                batch.append(receive(zmq.NOBLOCK))
        except zmq.Again:
            pass
        if not batch:
            if not self._armed:
                self._arm()
            return
        try:
            self._take(batch)
        finally:
            self._again(len(batch) == BATCH)

    def _again(self, full: bool) -> None:
        """Arrange for the next drain: on a short timer while it is busy, else by the descriptor."""
        now = now_ns()
        busy, self._last_ns = now - self._last_ns < BUSY_NS, now
        if busy or full:
            if self._armed:
                self._loop.remove_reader(self._descriptor)
                self._armed = False
            self._timer = self._loop.call_later(PACE_S, self._drain)
        elif not self._armed:
            self._arm()
        else:
            self.poke()


class _End:
    """A socket with its reader; closing twice is harmless."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self.reader: Reader | None = None
        self.bad = 0

    def read(self, take: Callable[[list[list[bytes]]], object]) -> None:
        self.reader = Reader(self.socket, take)

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()
        if not self.socket.closed:
            self.socket.close()

    def _decoded(self, batch: list[list[bytes]], decode: Callable[[bytes], Any]) -> list[Any]:
        """The messages of a batch; what does not decode is counted and dropped."""
        messages = []
        for frames in batch:
            try:
                messages.append(decode(frames[-1]))
            except wire.DecodeError:
                self.bad += 1
        return messages

    def _offer(self, *frames: bytes) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            if self.reader is not None:
                self.reader.poke()
        return True


# ── ingress ──────────────────────────────────────────────────────────────────────────────────────


class Ingress(_End):
    """A producer's end. With nobody at the other end `send` says False at once, rather than pile up."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(_socket(zmq.PUSH))
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint(run_dir, "ingress"))

    def send(self, message: wire.Ingress) -> bool:
        """Hand over one look, census or interest. False: full or away; keep it and try again."""
        return self._offer(wire.encode(message))

    def send_all(self, looks: Iterable[Look]) -> int:
        """Hand over looks until one is refused; returns how many went."""
        sent = 0
        for look in looks:
            if not self.send(look):
                break
            sent += 1
        return sent


class IngressServer(_End):
    """The aggregator's single queue: `take` gets each batch of raw messages, in order of arrival."""

    def __init__(self, run_dir: Path, take: Callable[[list[list[bytes]]], object]) -> None:
        super().__init__(_socket(zmq.PULL))
        self.socket.bind(endpoint(run_dir, "ingress"))
        self.read(take)


# ── feed and taps ────────────────────────────────────────────────────────────────────────────────


class Publisher(_End):
    """An XPUB: knows whether anybody listens, drops for whoever is slow, waits for nobody.

    `joined` is called when somebody has subscribed: a chance to say at once where things stand.
    """

    def __init__(
        self, run_dir: Path, name: str, high_water: int = HIGH_WATER, joined: Callable[[], object] | None = None
    ) -> None:
        super().__init__(_socket(zmq.XPUB, send=high_water))
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.socket.bind(endpoint(run_dir, name))
        self.watched = False
        self._topics: set[bytes] = set()
        self._joined = joined
        self.read(self._subscriptions)

    def _subscriptions(self, batch: list[list[bytes]]) -> None:
        joined = False
        for frames in batch:
            event = frames[0]
            if event[:1] == b"\1":
                self._topics.add(event[1:])
                joined = True
            elif event[:1] == b"\0":
                self._topics.discard(event[1:])
        self.watched = bool(self._topics)
        if joined and self._joined is not None:
            self._joined()

    def publish(self, topic: bytes, message: object) -> None:
        self._offer(topic, wire.encode(message))


class Subscriber(_End):
    """A SUB on what one publisher says: everything, unless told a topic."""

    def __init__(
        self,
        run_dir: Path,
        name: str,
        decode: Callable[[bytes], Any],
        take: Callable[[list[Any]], None],
        topic: bytes = b"",
    ) -> None:
        super().__init__(_socket(zmq.SUB))
        self.socket.setsockopt(zmq.SUBSCRIBE, topic)
        self.socket.connect(endpoint(run_dir, name))
        self.read(lambda batch: take(self._decoded(batch, decode)))


def feed(run_dir: Path, take: Callable[[list[wire.Feed]], None]) -> Subscriber:
    return Subscriber(run_dir, "feed", wire.decode_feed, take)


def heartbeats(run_dir: Path, take: Callable[[list[wire.Heartbeat]], None]) -> Subscriber:
    """The feed without what changes: who only has to know where things stand is not woken for it."""
    return Subscriber(run_dir, "feed", wire.decode_feed, take, wire.HEARTBEAT_TOPIC)


def tap(run_dir: Path, take: Callable[[list[wire.Tap]], None]) -> list[Subscriber]:
    """Both taps: what the aggregator rules and what the dispatcher does."""
    return [Subscriber(run_dir, name, wire.decode_tap, take) for name in ("tap", "jobs-tap")]


# ── query ────────────────────────────────────────────────────────────────────────────────────────


class QueryServer(_End):
    """Answers each question at once; whoever went away meanwhile misses the answer."""

    def __init__(self, run_dir: Path, answer: Callable[[wire.Query], wire.Answer]) -> None:
        super().__init__(_socket(zmq.ROUTER))
        self.socket.bind(endpoint(run_dir, "query"))
        self._answer = answer
        self.read(self._serve)

    def _serve(self, batch: list[list[bytes]]) -> None:
        for frames in batch:
            try:
                query = wire.decode_query(frames[-1])
            except wire.DecodeError:
                self.bad += 1
            else:
                self._offer(frames[0], wire.encode(self._answer(query)))


class Queries(_End):
    """Asks the aggregator; answers come to `take` whenever they come."""

    def __init__(self, run_dir: Path, take: Callable[[list[wire.Answer]], None]) -> None:
        super().__init__(_socket(zmq.DEALER))
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint(run_dir, "query"))
        self.read(lambda batch: take(self._decoded(batch, wire.decode_answer)))

    def ask(self, query: wire.Query) -> bool:
        return self._offer(wire.encode(query))


# ── hints ────────────────────────────────────────────────────────────────────────────────────────


class Hints(_End):
    """A gateway's end. What cannot leave at once is lost: the cadence is the guarantee."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(_socket(zmq.PUSH, send=HINTS_HIGH_WATER))
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint(run_dir, "hints"))

    def send(self, hint: wire.Hint) -> bool:
        return self._offer(wire.encode(hint))


class HintsServer(_End):
    """The end of whoever looks again."""

    def __init__(self, run_dir: Path, take: Callable[[list[wire.Hint]], None]) -> None:
        super().__init__(_socket(zmq.PULL, receive=HINTS_HIGH_WATER))
        self.socket.bind(endpoint(run_dir, "hints"))
        self.read(lambda batch: take(self._decoded(batch, wire.decode_hint)))


# ── jobs ─────────────────────────────────────────────────────────────────────────────────────────


class JobsServer(_End):
    """The dispatcher's end: `take` gets (worker's address, message)."""

    def __init__(self, run_dir: Path, take: Callable[[list[tuple[bytes, wire.WorkerSays]]], None]) -> None:
        super().__init__(_socket(zmq.ROUTER))
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(endpoint(run_dir, "jobs"))
        self._hand_over = take
        self.read(self._take)

    def _take(self, batch: list[list[bytes]]) -> None:
        messages = []
        for frames in batch:
            try:
                messages.append((frames[0], wire.decode_worker(frames[-1])))
            except wire.DecodeError:
                self.bad += 1
        self._hand_over(messages)

    def send(self, address: bytes, message: wire.Job) -> bool:
        return self._offer(address, wire.encode(message))


class JobsClient(_End):
    """A worker's end."""

    def __init__(self, run_dir: Path, take: Callable[[list[wire.Job]], None]) -> None:
        super().__init__(_socket(zmq.DEALER))
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint(run_dir, "jobs"))
        self.read(lambda batch: take(self._decoded(batch, wire.decode_job)))

    def send(self, message: wire.WorkerSays) -> bool:
        return self._offer(wire.encode(message))


def close() -> None:
    """End all sockets of this process, giving what was sent a moment to leave."""
    zmq.Context.instance().destroy(linger=LINGER_MS)
