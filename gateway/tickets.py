"""Tickets: a page opens a socket with one, where neither a cookie nor a bearer can go along.

Any gateway of the deployment takes a ticket of any other. Each is a file in the run directory, and to redeem it is to
remove that file: the kernel sees to it that only one of all who try succeeds. The ticket itself is signed and says
when it ends and whose it is, so nothing is looked for that was not ours, and what has ended can be told from what
never was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from gateway.seal import Seal
from pipeline.runtime.clock import CLOCK, now_ns

TICKET_S: Final = 30
MOST: Final = 1000
_NONCE_BYTES: Final = 16


class Full(Exception):
    """More tickets wait to be used than is sensible."""


class Ticket(Struct, frozen=True, array_like=True):
    """What a ticket says. `clock`: what `ends_ns` is a reading of; a ticket does not outlive a boot."""

    nonce: str
    token_id: str
    ends_ns: int
    clock: str

    def ended(self, now: int) -> bool:
        return self.clock != CLOCK or now >= self.ends_ns


class Tickets:
    """Of one deployment: what one gateway issues another one redeems, once."""

    def __init__(self, secret: str, run_dir: Path, now: Callable[[], int] = now_ns) -> None:
        self._seal = Seal(secret, "ticket", Ticket)
        self._folder = run_dir / "tickets"
        self._now = now

    def issue(self, token_id: str) -> str:
        """A ticket for the holder of this token. Raises `Full`, or `OSError` where it cannot be written down."""
        try:
            os.mkdir(self._folder, 0o700)
        except FileExistsError:
            pass
        if len(os.listdir(self._folder)) >= MOST:
            self.sweep()
            if len(os.listdir(self._folder)) >= MOST:
                raise Full
        ticket = Ticket(secrets.token_hex(_NONCE_BYTES), token_id, self._now() + TICKET_S * 1_000_000_000, CLOCK)
        os.close(os.open(self._file(ticket), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return self._seal.close(ticket)

    def redeem(self, text: str) -> str | None:
        """The token whose ticket this is, the first time and in time; else ``None``."""
        ticket = self._seal.open(text)
        if ticket is None:
            return None
        try:
            os.unlink(self._file(ticket))
        except OSError:
            return None
        return None if ticket.ended(self._now()) else ticket.token_id

    def expired(self, text: str) -> bool:
        """Whether it was a ticket of ours, and came too late."""
        ticket = self._seal.open(text)
        return ticket is not None and ticket.ended(self._now())

    def sweep(self) -> None:
        """Remove what nobody came for."""
        kept_s = TICKET_S * 2  # a file's age is told by another clock than the ticket's end
        try:
            with os.scandir(self._folder) as files:
                old = [file.path for file in files if _age_s(file) > kept_s]
        except FileNotFoundError:
            return
        for path in old:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _file(self, ticket: Ticket) -> Path:
        return self._folder / ticket.nonce


def _age_s(file: os.DirEntry[str]) -> float:
    try:
        return time.time() - file.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # redeemed meanwhile
        return 0.0
