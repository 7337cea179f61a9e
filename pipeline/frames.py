"""Every message of the client protocol, version 1, as tagged unions in JSON: see docs/protocol.md.

What a client sends is checked strictly: another type, or a field of another type, is a bad frame. What a server
sends is read leniently by clients: they ignore types and fields that they do not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

PROTOCOL: Final = 1
SUBPROTOCOL: Final = "treewire.v1"

Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Version: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Name: TypeAlias = Annotated[str, Meta(max_length=128)]
Health: TypeAlias = dict[str, Any]

REASONS: Final = ("initial", "epoch", "floor", "ahead", "hash", "slow")
ENDS: Final = ("revoked", "not_found", "unsubscribed")
ERRORS: Final = ("forbidden", "not_found", "duplicate", "too_many")
if TYPE_CHECKING:  # what we may send
    Reason: TypeAlias = Literal["initial", "epoch", "floor", "ahead", "hash", "slow"]
    Ended: TypeAlias = Literal["revoked", "not_found", "unsubscribed"]
    Failed: TypeAlias = Literal["forbidden", "not_found", "duplicate", "too_many"]
else:  # what a client must be able to read: a later release may know more
    Reason = Annotated[str, Meta(examples=list(REASONS))]
    Ended = Annotated[str, Meta(examples=list(ENDS))]
    Failed = Annotated[str, Meta(examples=list(ERRORS))]

# ── client → server ──────────────────────────────────────────────────────────────────────────────


class Hello(Struct, frozen=True, tag="hello"):
    """The first frame. ``ticket`` is not needed where a cookie or a bearer already authenticated."""

    ticket: str | None = None


class Subscribe(Struct, frozen=True, tag="subscribe"):
    """Follow a project, from a cursor if the client has one. ``id`` is the client's to choose."""

    id: Id
    project: Name
    epoch: Name | None = None
    version: Version | None = None


class Unsubscribe(Struct, frozen=True, tag="unsubscribe"):
    id: Id


class Mark(Struct, frozen=True, omit_defaults=True):
    """Where a subscription stands: the state hash at this version. ``complete``: nothing of the project is left out."""

    version: Version
    hash: Name
    complete: bool = True


class Ack(Struct, frozen=True, tag="ack"):
    """The answer to heartbeat ``n``, with what the client itself computed."""

    n: Version
    subscriptions: dict[str, Mark] = {}


class Resync(Struct, frozen=True, tag="resync"):
    """The client missed something (``gap``, it holds ``version``), or its state is not what the hash says."""

    id: Id
    reason: Literal["gap", "hash"]
    version: Version | None = None


FromClient: TypeAlias = Hello | Subscribe | Unsubscribe | Ack | Resync
CLIENT: Final = (Hello, Subscribe, Unsubscribe, Ack, Resync)

# ── server → client ──────────────────────────────────────────────────────────────────────────────


class Bounds(Struct, frozen=True):
    """What the server allows one socket."""

    subscriptions: int
    frame_bytes: int


class Welcome(Struct, frozen=True, tag="welcome"):
    """``epoch``: the aggregator's present run, empty if none has been heard of yet."""

    protocol: int
    epoch: str
    heartbeat_ms: int
    limits: Bounds


class Loading(Struct, frozen=True, tag="loading"):
    """Nothing complete to show yet. A client that holds an older state goes on showing it."""

    id: int


class Snapshot(Struct, frozen=True, tag="snapshot"):
    """The whole project at ``version``; replaces whatever the client held."""

    id: int
    epoch: str
    version: int
    hash: str
    reason: Reason
    complete: bool
    workspaces: dict[str, Any]


class Delta(Struct, frozen=True, tag="delta", rename={"from_": "from"}):
    """JSON Merge Patch over the workspaces at ``from``; the result is exactly the state at ``to``."""

    id: int
    epoch: str
    from_: int
    to: int
    patch: dict[str, Any]


class Heartbeat(Struct, frozen=True, tag="heartbeat"):
    """In the same ordered stream as the deltas: each mark is what the client must hold at this point."""

    n: int
    subscriptions: dict[str, Mark]
    health: Health


class End(Struct, frozen=True, tag="end"):
    """The subscription is over, and its id free. Whoever wants it again subscribes again."""

    id: int
    code: Ended


class Error(Struct, frozen=True, tag="error"):
    """One request failed; the socket and the other subscriptions go on."""

    id: int
    code: Failed
    message: str


FromServer: TypeAlias = Welcome | Loading | Snapshot | Delta | Heartbeat | End | Error
SERVER: Final = (Welcome, Loading, Snapshot, Delta, Heartbeat, End, Error)

# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────


class State(Struct, frozen=True):
    """``GET /v1/projects/{project}/snapshot``: as a snapshot frame, without a subscription."""

    project: str
    epoch: str
    version: int
    hash: str
    complete: bool
    workspaces: dict[str, Any]


class Changes(Struct, frozen=True, rename={"from_": "from"}):
    """``GET /v1/projects/{project}/changes``: as a delta frame, with the hash at ``to``. Empty: nothing happened."""

    project: str
    epoch: str
    from_: int
    to: int
    hash: str
    complete: bool
    patch: dict[str, Any]


class Problem(Struct, frozen=True):
    """Any answer that is not what was asked for: a code for programs, a sentence for people."""

    code: str
    message: str


# ── closing ──────────────────────────────────────────────────────────────────────────────────────

INTERNAL: Final = 4000
SHUTTING_DOWN: Final = 4001
TICKET_EXPIRED: Final = 4002
STALLED: Final = 4003
NO_ACK: Final = 4004
RATE: Final = 4005
NOT_READY: Final = 4006
BAD_FRAME: Final = 4500
UNAUTHENTICATED: Final = 4501
FORBIDDEN: Final = 4502
HELLO_TIMEOUT: Final = 4503
TOO_MANY: Final = 4504
WRONG_PROTOCOL: Final = 4505
REVOKED: Final = 4506


def reconnects(code: int) -> bool:
    """Whether a client that is closed with this code shall try again."""
    return not 4500 <= code <= 4999


encode = msgspec.json.Encoder().encode
decode_client = msgspec.json.Decoder(FromClient).decode
decode_server = msgspec.json.Decoder(FromServer).decode
DecodeError = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _Typed(Struct):
    type: str


_TYPES: Final = {kind.__struct_config__.tag for kind in SERVER}
_decode_type = msgspec.json.Decoder(_Typed).decode


def read_server(data: bytes | str) -> FromServer | None:
    """As a client reads: ``None`` for a type that it does not know. Raises `DecodeError`."""
    return decode_server(data) if _decode_type(data).type in _TYPES else None
