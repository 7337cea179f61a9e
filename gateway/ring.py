"""Many writes with one system call: a frame handed to many sockets through io_uring, where the kernel lets us.

To a thousand clients the system calls are most of what a frame costs. io_uring(7) takes a whole batch with one call:
an entry for each socket, all with the address of the same frame, filled in by slices and not one by one. Each send is
non-blocking, so it is over when the call returns and nothing of ours stays in the kernel: what a socket did not take
is told, and is then the transport's business.

Kernels may be without it, and containers often forbid it. So `Ring.open` tries it out on a pair of sockets first, full
ones too, and says why if it cannot be had; `write_each` is the same with one `write` a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

Send: TypeAlias = Callable[[Sequence[int], bytes], "Sequence[Short]"]
"""Write a frame to each of these descriptors; tells of each that did not take the whole of it."""

Short: TypeAlias = tuple[int, int]
"""The place among the descriptors, and how many bytes were taken, or the negative errno."""

ENTRIES: Final = 1024

# From <linux/io_uring.h>; the numbers of the calls are the same on all architectures that Python runs on but Alpha.
_SYS_SETUP: Final = 425
_SYS_ENTER: Final = 426
_PARAMS: Final = 120
_SETUP_SINGLE_ISSUER: Final = 1 << 12
_SETUP_DEFER_TASKRUN: Final = 1 << 13
_FEAT_SINGLE_MMAP: Final = 1
_ENTER_GETEVENTS: Final = 1
_OFF_ENTRIES: Final = 0x10000000
_OP_SEND: Final = 26
_ENTRY: Final = 64
_RESULT: Final = 16
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_U32: Final = 0xFFFFFFFF

_libc: Final = ctypes.CDLL(None, use_errno=True)


def write_each(descriptors: Sequence[int], frame: bytes) -> list[Short]:
    """The plain way."""
    write, length = os.write, len(frame)
    short: list[Short] = []
    for place, descriptor in enumerate(descriptors):
        try:
            written = write(descriptor, frame)
        except OSError as error:
            written = -(error.errno or errno.EIO)
        if written != length:
            short.append((place, written))
    return short


class Unavailable(Exception):
    """The message says why."""


class Ring:
    """For one thread: the one that opened it."""

    def __init__(self, entries: int = ENTRIES) -> None:
        """Raises `Unavailable`."""
        self._fd, params = _set_up(entries)
        try:
            self._map(params)
        except (OSError, ValueError) as error:
            self.close()
            raise Unavailable(f"io_uring cannot be mapped: {error}") from error

    def _map(self, params: bytes) -> None:
        entries, results = struct.unpack_from("II", params, 0)
        if not struct.unpack_from("I", params, 20)[0] & _FEAT_SINGLE_MMAP:
            raise ValueError("the kernel is too old")
        head, tail, _, _, _, _, order, _ = struct.unpack_from("8I", params, 40)
        done_head, done_tail, _, _, _, done, _, _ = struct.unpack_from("8I", params, 80)
        size = max(order + 4 * entries, done + _RESULT * results)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        shared = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        rings = memoryview(mmap.mmap(self._fd, size, shared, protection, offset=0))
        slots = memoryview(mmap.mmap(self._fd, _ENTRY * entries, shared, protection, offset=_OFF_ENTRIES))
        self._entries, self._results = entries, results
        self._words = rings[: size // 4 * 4].cast("I")
        self._head, self._tail, self._done_head, self._done_tail = head // 4, tail // 4, done_head // 4, done_tail // 4
        answers = rings[done : done + _RESULT * results]
        self._places, self._written = answers.cast("Q")[0::2], answers.cast("i")[2::4]
        self._descriptors = slots.cast("i")[1::16]
        self._addresses = slots.cast("Q")[2::8]
        self._lengths = slots.cast("I")[6::16]
        self._words[order // 4 : order // 4 + entries] = memoryview(array("I", range(entries)))
        slots[0::_ENTRY] = memoryview(bytes([_OP_SEND]) * entries)
        slots.cast("I")[7::16] = memoryview(array("I", [_FLAGS]) * entries)
        slots.cast("Q")[4::8] = memoryview(array("Q", range(entries)))

    @classmethod
    def open(cls, entries: int = ENTRIES) -> Ring:
        """One that was tried out. Raises `Unavailable`."""
        ring = cls(entries)
        try:
            ring._try_out()
        except (Unavailable, OSError) as error:
            ring.close()
            raise Unavailable(f"io_uring does not do what it should: {error}") from error
        return ring

    def close(self) -> None:
        """What is mapped goes with the last that refers to it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def send(self, descriptors: Sequence[int], frame: bytes) -> list[Short]:
        """See `Send`. Whom the kernel would not take on now is told as not ready."""
        short: list[Short] = []
        for at in range(0, len(descriptors), self._entries):
            batch = array("i", descriptors[at : at + self._entries])
            short += [(at + place, written) for place, written in self._send(batch, frame)]
        return short

    def _send(self, descriptors: array[int], frame: bytes) -> list[Short]:
        count, length, words = len(descriptors), len(frame), self._words
        first = words[self._tail]
        slot = first & (self._entries - 1)
        before = min(count, self._entries - slot)  # then it goes on at the beginning
        address = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p).value or 0
        whole = memoryview(descriptors)
        for start, part in ((slot, whole[:before]), (0, whole[before:])):
            end = start + len(part)
            self._descriptors[start:end] = part
            self._addresses[start:end] = memoryview(array("Q", [address]) * len(part))
            self._lengths[start:end] = memoryview(array("I", [length]) * len(part))
        words[self._tail] = (first + count) & _U32
        taken = self._enter(count)
        places, written = self._take()
        if taken == count and written == [length] * count:
            return []
        mask = self._entries - 1
        short = [((p - slot) & mask, w) for p, w in zip(places, written, strict=True) if w != length]
        return short + [(place, -errno.EAGAIN) for place in range(taken, count)]

    def _enter(self, count: int) -> int:
        """Hand over what is in the ring; returns how many entries were taken, all of which are done then."""
        taken, words = 0, self._words
        while taken < count:
            rest = count - taken
            more = _libc.syscall(_SYS_ENTER, self._fd, rest, rest, _ENTER_GETEVENTS, None, 0)
            if more > 0:
                taken += more
            elif more == 0 or ctypes.get_errno() != errno.EINTR:
                words[self._tail] = words[self._head]  # the rest is not to be
                break
        return taken

    def _take(self) -> tuple[list[int], list[int]]:
        """The slots of what is done, and the results."""
        words, mask = self._words, self._results - 1
        start, end = words[self._done_head] & mask, words[self._done_tail] & mask
        if start <= end:
            places, written = self._places[start:end].tolist(), self._written[start:end].tolist()
        else:
            places = self._places[start:].tolist() + self._places[:end].tolist()
            written = self._written[start:].tolist() + self._written[:end].tolist()
        words[self._done_head] = words[self._done_tail]
        return places, written

    def _try_out(self) -> None:
        """Twice around the ring, with sockets that are read, that are full, and that are closed."""
        with contextlib.ExitStack() as stack:
            pairs = [socket.socketpair() for _ in range(3)]
            for ours, theirs in pairs:
                stack.enter_context(ours)
                stack.enter_context(theirs)
                ours.setblocking(False)
            (well, reader), (full, _), (broken, gone) = pairs
            gone.close()
            with contextlib.suppress(BlockingIOError):
                while True:
                    full.send(bytes(4096))
            for turn in range(2 * self._entries // 3 + 2):
                frame = b"frame %d" % turn
                told = self.send([well.fileno(), full.fileno(), broken.fileno()], frame)
                if told != [(1, -errno.EAGAIN), (2, -errno.EPIPE)]:
                    raise Unavailable(f"it told {told}")
                if (read := reader.recv(4096)) != frame:
                    raise Unavailable(f"{read!r} came for {frame!r}")
            long = bytes(1 << 20)
            told = self.send([well.fileno()], long)
            if not (len(told) == 1 and 0 < told[0][1] < len(long)):
                raise Unavailable(f"of a long frame it told {told}")


def _set_up(entries: int) -> tuple[int, bytes]:
    """A ring's descriptor and what the kernel says of it."""
    for flags in (_SETUP_SINGLE_ISSUER | _SETUP_DEFER_TASKRUN, 0):  # kernels before 6.1 do not know these
        params = ctypes.create_string_buffer(_PARAMS)
        struct.pack_into("I", params, 8, flags)
        fd = _libc.syscall(_SYS_SETUP, entries, params)
        if fd >= 0:
            os.set_inheritable(fd, False)
            return fd, params.raw
        code = ctypes.get_errno()
        if code != errno.EINVAL:
            break
    raise Unavailable(f"io_uring is not to be had: {os.strerror(code)}")
