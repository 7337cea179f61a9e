"""WebSocket clients that cost next to nothing: one that measures, and a crowd that only drains, in its own process."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit


def connect(url: str, token: str, project: str) -> socket.socket:
    """Open a stream, say hello and subscribe; what comes is the caller's."""
    at = urlsplit(url)
    end = socket.create_connection((at.hostname, at.port), timeout=10)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    end.sendall(
        f"GET /v1/stream HTTP/1.1\r\nHost: {at.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: treewire.v1\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += end.recv(1)
    if b" 101 " not in answer.split(b"\r\n")[0]:
        raise RuntimeError(f"no stream: {answer.decode(errors='replace')}")
    send(end, {"type": "hello"})
    send(end, {"type": "subscribe", "id": 1, "project": project})
    return end


def send(end: socket.socket, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    size = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2, "big")
    end.sendall(b"\x81" + size + b"\0\0\0\0" + body)  # a mask of zeros masks nothing


class Frames:
    """Cuts a byte stream into text frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        self._buffer += data
        while len(self._buffer) >= 2:
            size, start = self._buffer[1] & 127, 2
            if size == 126:
                size, start = int.from_bytes(self._buffer[2:4], "big"), 4
            elif size == 127:
                size, start = int.from_bytes(self._buffer[2:10], "big"), 10
            if len(self._buffer) < start + size:
                return
            kind, body = self._buffer[0] & 15, bytes(self._buffer[start : start + size])
            del self._buffer[: start + size]
            if kind == 1:
                yield json.loads(body)


def frames(end: socket.socket, seconds: float) -> Iterator[dict[str, Any]]:
    """What arrives within a time; acknowledges heartbeats."""
    cut, until = Frames(), time.perf_counter() + seconds
    while (left := until - time.perf_counter()) > 0:
        end.settimeout(left)
        try:
            data = end.recv(1 << 20)
        except TimeoutError:
            return
        if not data:
            raise RuntimeError("the gateway closed the stream")
        for frame in cut.feed(data):
            if frame["type"] == "heartbeat":
                send(end, {"type": "ack", "n": frame["n"], "subscriptions": {}})
            yield frame


@contextlib.contextmanager
def crowd(count: int, url: str, token: str, project: str) -> Iterator[None]:
    """`count` clients that read everything and look at nothing."""
    if not count:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.sockets", str(count), url, project]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(token.encode() + b"\n")
        child.stdin.flush()
        if child.stdout.readline() != b"ready\n":
            raise RuntimeError("the crowd could not connect")
        yield
    finally:
        child.kill()
        child.wait()


def _drain(count: int, url: str, token: str, project: str) -> None:
    waiting = selectors.DefaultSelector()
    for _ in range(count):
        end = connect(url, token, project)
        end.setblocking(False)
        waiting.register(end, selectors.EVENT_READ)
    print("ready", flush=True)
    scrap = bytearray(1 << 18)
    while True:
        for key, _ in waiting.select():
            with contextlib.suppress(BlockingIOError):
                if key.fileobj.recv_into(scrap) == 0:  # type: ignore[union-attr]
                    waiting.unregister(key.fileobj)


if __name__ == "__main__":
    _drain(int(sys.argv[1]), sys.argv[2], sys.stdin.readline().strip(), sys.argv[3])
