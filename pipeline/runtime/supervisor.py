"""Living under supervisord: dying with it, and its XML-RPC over a unix socket, in the little that is needed of it.

The standard client would cost the watchdog, which lives as long as the deployment, twice its memory.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SOCKET = "supervisord.sock"
LOCK = "supervisord.lock"
_PR_SET_PDEATHSIG = 1


class Unreachable(Exception):
    """No supervisord answers on the socket."""


class Fault(Exception):
    """supervisord refused; the message is its own."""


def call(run_dir: str | Path, method: str, *args: str | bool, timeout_s: float = 5.0) -> Any:
    """Call ``supervisor.<method>`` and return its value. Raises `Unreachable` or `Fault`."""
    body = _request(method, args)
    head = f"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(timeout_s)
            peer.connect(str(Path(run_dir) / SOCKET))
            peer.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: peer.recv(65536), b""))
        return _result(answer)
    except (OSError, ValueError, SyntaxError) as error:  # ElementTree's ParseError is a SyntaxError
        raise Unreachable(f"supervisord does not answer in {run_dir}: {error}") from None


def _request(method: str, args: tuple[str | bool, ...]) -> bytes:
    params = "".join(f"<param><value>{_encoded(arg)}</value></param>" for arg in args)
    return f"<methodCall><methodName>supervisor.{method}</methodName><params>{params}</params></methodCall>".encode()


def _encoded(arg: str | bool) -> str:
    if isinstance(arg, bool):
        return f"<boolean>{int(arg)}</boolean>"
    return f"<string>{arg.replace('&', '&amp;').replace('<', '&lt;')}</string>"


def _result(answer: bytes) -> Any:
    from xml.etree import ElementTree  # the peer is our own supervisord; most who import this module never call it

    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(f"answered {head[:60]!r}")
    tree = ElementTree.fromstring(body)  # noqa: S314
    fault = tree.find("fault/value")
    if fault is not None:
        raise Fault(_decoded(fault)["faultString"])
    value = tree.find("params/param/value")
    if value is None:
        raise ValueError("answered without a value")
    return _decoded(value)


def _decoded(value: Element) -> Any:
    if not len(value):
        return value.text or ""
    inner = value[0]
    match inner.tag:
        case "int" | "i4":
            return int(inner.text or 0)
        case "boolean":
            return inner.text == "1"
        case "array":
            return [_decoded(item) for item in inner.iterfind("data/value")]
        case "struct":
            return {
                member.findtext("name"): _decoded(found)
                for member in inner.iterfind("member")
                if (found := member.find("value")) is not None
            }
        case _:
            return inner.text or ""


def supervised() -> bool:
    """Whether supervisord started this process."""
    return "SUPERVISOR_ENABLED" in os.environ


def die_with_supervisor() -> None:
    """Have the kernel kill us when supervisord dies, even by SIGKILL, and even if we are stopped or hung."""
    if not supervised():
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    parent = os.environ.get("TREEWIRE_SUPERVISOR_PID")
    if parent is not None and os.getppid() != int(parent):  # it died before we had said so
        raise SystemExit(1)
