"""Tokens and what they open. Only a hash of each is kept: whoever reads the database has no token.

A token is 256 random bits, so a plain hash hides it, and finding it by its hash takes the same time however much of a
guess was right.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct, structs
from sqlalchemy import Connection, delete, insert, or_, select, update

from pipeline.catalog import tables
from pipeline.catalog.projects import projects
from pipeline.domain.errors import TreewireError

PREFIX: Final = "tw_"
USED_MS: Final = 3_600_000
KEPT_MS: Final = 30 * 86_400_000
_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 4


class TokenError(TreewireError):
    """The operator asked for what cannot be; the message says what there is instead."""


class Token(Struct, frozen=True):
    """A token without its secret. `projects`: ids, ``None`` for all. `used_ms`: the hour of its last use."""

    id: str
    name: str
    projects: list[str] | None
    may_write: bool
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    used_ms: int | None = None

    def state(self, now_ms: int) -> str:
        """``active``, ``revoked`` or ``expired``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and now_ms >= self.expires_ms else "active"


class Created(NamedTuple):
    """A token, and the secret that is told this once."""

    token: Token
    secret: str


def token_hash(secret: str) -> str:
    """What of a token is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def create_token(
    tx: Connection,
    at_ms: int,
    granted: Iterable[str] | None,
    name: str = "",
    may_write: bool = True,
    expires_ms: int | None = None,
) -> Created:
    """Make a token for the projects of these ids, or for all. Raises `TokenError`.

    Tokens that ended long ago are forgotten.
    """
    _forget(tx, at_ms - KEPT_MS)
    known = tokens(tx)
    ids = None if granted is None else _granted(tx, granted)
    id_ = _new_id({token.id for token in known})
    for other in known:
        if name and name in (other.id, other.name) and other.state(at_ms) == "active":
            raise TokenError(f"There is a token named {name!r} already: revoke it, or choose another name.")
    token = Token(id_, name or id_, ids, may_write, at_ms, expires_ms)
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = {
        "id": token.id,
        "name": token.name,
        "hash": token_hash(secret),
        "all_projects": ids is None,
        "may_write": may_write,
        "created_ms": at_ms,
        "expires_ms": expires_ms,
        "revoked_ms": None,
        "used_ms": None,
    }
    tx.execute(insert(tables.token), [row])
    if ids:
        tx.execute(insert(tables.token_project), [{"token_id": id_, "project_id": project} for project in ids])
    return Created(token, secret)


def tokens(tx: Connection) -> list[Token]:
    """All tokens, those that have ended too, in the order in which they were made."""
    return [*token_hashes(tx).values()]


def token_hashes(tx: Connection, ended: bool = True) -> dict[str, Token]:
    """Hash → token; without those that were revoked unless `ended`."""
    table, grants = tables.token, tables.token_project
    query = select(table).order_by(table.c.created_ms, table.c.id)
    if not ended:
        query = query.where(table.c.revoked_ms.is_(None))
    opened: dict[str, list[str]] = {}
    for row in tx.execute(select(grants).order_by(grants.c.project_id)):
        opened.setdefault(row.token_id, []).append(row.project_id)
    return {
        row.hash: Token(
            row.id,
            row.name,
            None if row.all_projects else opened.get(row.id, []),
            row.may_write,
            row.created_ms,
            row.expires_ms,
            row.revoked_ms,
            row.used_ms,
        )
        for row in tx.execute(query)
    }


def revoke_token(tx: Connection, id_or_name: str, at_ms: int) -> Token:
    """End it; one that was revoked stays as it is. Raises `TokenError` where there is none."""
    table = tables.token
    known = tokens(tx)
    named = [token for token in known if token.id == id_or_name] or [
        token for token in known if token.name == id_or_name
    ]
    found = [token for token in named if token.state(at_ms) == "active"] or named[-1:]
    if not found:
        active = ", ".join(token.name for token in known if token.state(at_ms) == "active") or "none"
        raise TokenError(
            f"There is no token {id_or_name!r}; active ones: {active}. `treewire token list` shows them all."
        )
    token = found[0]
    if token.revoked_ms is not None:
        return token
    tx.execute(update(table).where(table.c.id == token.id).values(revoked_ms=at_ms))
    return structs.replace(token, revoked_ms=at_ms)


def note_token_use(tx: Connection, used: Mapping[str, int]) -> None:
    """When tokens were used last; never earlier than is known."""
    table = tables.token
    for id_, at_ms in used.items():
        earlier = or_(table.c.used_ms.is_(None), table.c.used_ms < at_ms)
        tx.execute(update(table).where(table.c.id == id_, earlier).values(used_ms=at_ms))


def _granted(tx: Connection, granted: Iterable[str]) -> list[str]:
    known = {project.id for project in projects(tx)}
    ids = sorted(set(granted))
    missing = [id_ for id_ in ids if id_ not in known]
    if missing:
        raise TokenError(
            f"There is no project {missing[0]!r}; there are: {', '.join(sorted(known)) or 'none yet'}. "
            "`treewire project list` shows them."
        )
    return ids


def _new_id(taken: Collection[str]) -> str:
    while (id_ := f"t{secrets.token_hex(_ID_BYTES)}") in taken:
        pass
    return id_


def _forget(tx: Connection, before_ms: int) -> None:
    table = tables.token
    tx.execute(delete(table).where(or_(table.c.revoked_ms < before_ms, table.c.expires_ms < before_ms)))
