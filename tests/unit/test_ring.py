"""One call for many sockets, with real sockets and a real kernel; and the plain way, which must tell the same."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import random
import socket
from collections.abc import Iterator

import pytest

from gateway import ring as ring_module
from gateway.ring import Ring, Send, Unavailable, write_each

ENTRIES = 8


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        found = Ring.open(ENTRIES)
    except Unavailable as error:
        pytest.skip(str(error))
    yield found
    found.close()


@pytest.fixture(params=["io_uring", "write"])
def send(request: pytest.FixtureRequest) -> Send:
    if request.param == "write":
        return write_each
    found: Send = request.getfixturevalue("ring").send
    return found


class Sockets:
    """Pairs, of which the far ends can be read whole."""

    def __init__(self, count: int) -> None:
        self.pairs = [socket.socketpair() for _ in range(count)]
        for pair in self.pairs:
            for end in pair:
                end.setblocking(False)

    @property
    def descriptors(self) -> list[int]:
        return [near.fileno() for near, _ in self.pairs]

    def read(self, place: int) -> bytes:
        found = b""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self.pairs[place][1].recv(1 << 20):
                found += data
        return found

    def fill(self, place: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.pairs[place][0].send(bytes(1 << 14))

    def close(self) -> None:
        for pair in self.pairs:
            for end in pair:
                end.close()


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    found = Sockets(3 * ENTRIES + 1)
    yield found
    found.close()


def test_a_frame_reaches_everybody_however_many_there_are_and_wherever_the_ring_stands(
    send: Send, sockets: Sockets
) -> None:
    """W4."""
    for count in (*range(len(sockets.pairs) + 1), 5, 7, 3, ENTRIES, ENTRIES + 1):
        frame = b"frame for %d" % count
        assert list(send(sockets.descriptors[:count], frame)) == []
        for place in range(len(sockets.pairs)):
            assert sockets.read(place) == (frame if place < count else b"")


def test_who_did_not_take_all_of_it_is_told_and_nobody_else_is_the_worse_for_it(send: Send, sockets: Sockets) -> None:
    """W5."""
    dice = random.Random(7)
    for _ in range(50):
        full = set(dice.sample(range(len(sockets.pairs)), 4))
        for place in full:
            sockets.fill(place)
        assert list(send(sockets.descriptors, b"x" * 99)) == [(place, -errno.EAGAIN) for place in sorted(full)]
        for place in range(len(sockets.pairs)):
            read = sockets.read(place)
            assert b"x" not in read if place in full else read == b"x" * 99


def test_of_a_frame_that_fits_in_part_it_is_told_how_much_was_taken(send: Send, sockets: Sockets) -> None:
    frame = bytes(range(256)) * (1 << 13)
    short = dict(send(sockets.descriptors[:5], frame))
    assert short.keys() == {*range(5)}
    for place, taken in short.items():
        assert 0 < taken < len(frame)
        assert sockets.read(place) == frame[:taken]


def test_a_broken_socket_is_told_with_its_error(send: Send, sockets: Sockets) -> None:
    sockets.pairs[1][1].close()
    descriptors = sockets.descriptors
    sockets.pairs[2][0].close()
    told = dict(send(descriptors[:4], b"frame"))
    assert told == {1: -errno.EPIPE, 2: -errno.EBADF}
    assert [sockets.read(place) for place in (0, 3)] == [b"frame"] * 2


def test_what_the_kernel_does_not_take_on_is_told_as_not_ready_and_is_not_sent_later(
    ring: Ring, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ring_module._libc.syscall

    class Reluctant:
        calls = 0

        def syscall(self, number: int, fd: int, count: int, *rest: object) -> int:
            self.calls += 1
            if self.calls == 1:
                taken: int = real(number, fd, 2, 2, *rest[1:])
                return taken
            ctypes.set_errno(errno.EINTR if self.calls == 2 else errno.ENOMEM)
            return -1

    monkeypatch.setattr(ring_module, "_libc", Reluctant())
    assert ring.send(sockets.descriptors[:5], b"one") == [(place, -errno.EAGAIN) for place in (2, 3, 4)]
    monkeypatch.undo()
    assert ring.send(sockets.descriptors[:5], b"two") == []
    assert [sockets.read(place) for place in range(5)] == [b"onetwo"] * 2 + [b"two"] * 3


def test_a_kernel_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def syscall(self, *_: object) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(ring_module, "_libc", Refusing())
    with pytest.raises(Unavailable, match="Operation not permitted"):
        Ring.open()


def test_a_ring_that_does_not_tell_the_truth_is_not_used(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "send", lambda *_: [])
    with pytest.raises(Unavailable, match="does not do what it should"):
        Ring.open()
