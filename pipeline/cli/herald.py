"""Carries what happened to the gateway with the standard library alone: an agent stands still until it has started.

Run as a script it carries one hook: ``herald.py AGENT HOME [JSON]``, with the JSON on standard input where it is not
given. It says nothing, it always ends well and soon, and it never sends more of a hook than the members in `KEPT`.
"""

import contextlib
import json
import os
import signal
import socket
import sys

# As in `pipeline.bridges.hooks`, which cannot be imported here: what it stands on takes longer to load than all this.
KEPT = frozenset(
    {
        *("session_id", "thread-id", "cwd", "new_cwd", "old_cwd"),
        *("hook_event_name", "type", "source", "model", "tool_name", "notification_type", "agent_id"),
    }
)
WAIT_S = 0.5
LONGEST_S = 1.0
MAX_ANSWER = 1 << 20


class NotThere(Exception):
    """Nobody listens: nothing runs for this home."""


def kept(text: str | bytes) -> bytes | None:
    """The members of a hook that are sent on; ``None`` if it is no JSON object."""
    try:
        hook = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(hook, dict):
        return None
    return json.dumps({name: hook[name] for name in KEPT & hook.keys() if isinstance(hook[name], str)}).encode()


def post(home: str, path: str, body: bytes, wait_s: float = WAIT_S) -> tuple[int, bytes]:
    """Send it to the gateway of this home; the status and the body of its answer. Raises `NotThere` or `OSError`."""
    try:
        url, token = (_word(os.path.join(home, name)) for name in ("url", "token"))
    except FileNotFoundError:
        raise NotThere from None
    address = url.removeprefix("http://").rstrip("/")
    host, _, port = address.rpartition(":")
    try:
        link = socket.create_connection((host.strip("[]"), int(port)), wait_s)
    except (ConnectionRefusedError, ValueError):
        raise NotThere from None
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with link:
        link.sendall(head.encode("latin-1") + body)
        answer = b""
        while len(answer) < MAX_ANSWER and (part := link.recv(65536)):
            answer += part
    top, _, told = answer.partition(b"\r\n\r\n")
    words = top.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ConnectionError("what listens there speaks no HTTP")
    return int(words[1]), told


def carry(agent: str, home: str, text: str | bytes) -> int:
    """Carry one hook; the status of the answer, 0 for what is no hook. Raises `NotThere` or `OSError`."""
    body = kept(text)
    return 0 if body is None else post(home, f"/v1/events/{agent}", body)[0]


def quietly(agent: str, home: str, text: str | None = None) -> None:
    """Carry one hook, come what may, within `LONGEST_S`."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    with contextlib.suppress(Exception):
        carry(agent, home, sys.stdin.buffer.read() if text is None else text)


def _word(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        quietly(*sys.argv[1:4])
