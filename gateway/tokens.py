"""Who holds which token, and what it opens.

The token in the home is the operator's: it opens all projects and has no end. The others stand in the catalog, as
hashes. Every gateway keeps a copy of them in memory and asks again and again whether they changed. While the catalog
cannot be read, what was read last holds. An end is a date, so the wall clock decides it, and at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from pipeline.catalog import Catalog, CatalogUnavailable, ChangeWatch
from pipeline.catalog.tokens import PREFIX, USED_MS, Token, token_hash
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.log import FilteringBoundLogger

POLL_S: Final = 0.5
SOONEST_S: Final = 0.01
SEEK_S: Final = 0.25
HOME: Final = ""


class Caller(Struct, frozen=True):
    """Whose request it is. `token_id`: empty for the operator's own. `projects`: ``None`` opens all."""

    token_id: str = HOME
    writes: bool = True
    projects: frozenset[str] | None = None
    expires_ms: int | None = None

    def may(self, project_id: str) -> bool:
        """Whether this project is his to see; if it is not, it does not exist for him."""
        return self.projects is None or project_id in self.projects

    @property
    def everywhere(self) -> bool:
        """Whether all projects are his: only then he sees what is told of the deployment as a whole."""
        return self.projects is None


OPERATOR: Final = Caller()


class Tokens:
    """The tokens that open something now. `problem` says why they may be out of date; empty if they are not.

    `catalog` opens the catalog, in a thread; without it there is the operator's token only.
    """

    def __init__(
        self,
        home_token: str,
        catalog: Callable[[], Catalog] | None = None,
        log: FilteringBoundLogger | None = None,
        wall: Callable[[], int] = wall_ms,
    ) -> None:
        self.problem = ""
        self._home = token_hash(home_token)
        self._open = catalog
        self._log = log
        self._wall = wall
        self._watch: ChangeWatch | None = None
        self._hashes: dict[str, str] = {self._home: HOME}
        self._callers: dict[str, Caller] = {HOME: OPERATOR}
        self._told: dict[str, Caller] = self._living()
        self._used: dict[str, int] = {}  # token → the hour of its last use that the catalog knows
        self._to_note: dict[str, int] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._looking = asyncio.Lock()
        self._began = float("-inf")

    # ── asked by whoever admits ──────────────────────────────────────────────────────────────────

    def holder(self, secret: str) -> Caller | None:
        """Who comes with this token. It is looked up by its hash, so that no time tells how much of it was right."""
        id_ = self._hashes.get(token_hash(secret))
        return None if id_ is None else self.current(id_)

    async def find(self, secret: str) -> Caller | None:
        """As `holder`, but a token that was made a moment ago is looked for in the catalog before it is refused."""
        found = self.holder(secret)
        if found is None and secret.startswith(PREFIX) and self._open is not None:
            loop = asyncio.get_running_loop()
            arrived = loop.time()
            async with self._looking:
                if self._began <= arrived:
                    await asyncio.sleep(self._began + SEEK_S - loop.time())  # wrong tokens shall not be a load
                    await self._look()
            found = self.holder(secret)
        return found

    def current(self, token_id: str) -> Caller | None:
        """What this token opens now; ``None`` once it is revoked, expired or forgotten."""
        caller = self._callers.get(token_id)
        if caller is None or (caller.expires_ms is not None and self._wall() >= caller.expires_ms):
            return None
        return caller

    def note_use(self, token_id: str) -> None:
        """Remember that it was used, to the hour."""
        hour = self._wall() // USED_MS * USED_MS
        if token_id != HOME and self._used.get(token_id, 0) < hour:
            self._used[token_id] = self._to_note[token_id] = hour
            if self._watch is not None:
                self._watch.stir()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call this in the loop whenever what tokens open has changed."""
        self._callbacks.append(callback)

    # ── kept up to date ──────────────────────────────────────────────────────────────────────────

    async def keep(self) -> None:
        """Follow the catalog for ever."""
        while True:
            async with self._looking:
                await self._look()
            nap_s = self._nap()
            if nap_s == POLL_S and self._watch is not None and self._quiet():
                await self._watch.rest(POLL_S)
            else:
                await asyncio.sleep(nap_s)

    async def look(self) -> None:
        """Read what changed in the catalog, now."""
        async with self._looking:
            await self._look()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()

    async def _look(self) -> None:
        self._began = asyncio.get_running_loop().time()
        if self._open is not None and not self._quiet():
            used, self._to_note = self._to_note, {}
            try:
                found = await asyncio.to_thread(self._read, used)
            except CatalogUnavailable as error:
                self._to_note = {**used, **self._to_note}
                self._say(str(error))
            else:
                self._say("")
                if found is not None:
                    self._take(found)
        self._announce()

    def _quiet(self) -> bool:
        return not self._to_note and not self.problem and self._watch is not None and self._watch.quiet()

    def _read(self, used: dict[str, int]) -> dict[str, Token] | None:
        """In a thread. ``None``: nothing has changed since the last time."""
        assert self._open is not None
        catalog = self._open()
        if used:
            catalog.note_token_use(used)
        if self._watch is None:
            self._watch = ChangeWatch(catalog)
        # Only SQLite counts its changes; elsewhere reading the tokens is as cheap as asking whether to.
        if catalog.database.path is not None and self._watch.check() == "same" and not self.problem:
            return None
        return catalog.token_hashes()

    def _take(self, found: dict[str, Token]) -> None:
        self._hashes = {self._home: HOME, **{hash_: token.id for hash_, token in found.items()}}
        known, self._callers = self._callers, {HOME: OPERATOR}
        for token in found.values():
            caller = caller_of(token)
            same = known.get(token.id)
            self._callers[token.id] = (
                same if same is not None and same == caller else caller
            )  # so that `is` tells what changed
        self._used = {token.id: max(token.used_ms or 0, self._used.get(token.id, 0)) for token in found.values()}

    def _announce(self) -> None:
        living = self._living()
        if living != self._told:
            self._told = living
            for callback in self._callbacks:
                callback()

    def _living(self) -> dict[str, Caller]:
        return {id_: caller for id_ in self._callers if (caller := self.current(id_)) is not None}

    def _nap(self) -> float:
        ends = [caller.expires_ms for caller in self._told.values() if caller.expires_ms is not None]
        left = (min(ends) - self._wall()) / 1000 if ends else POLL_S
        return min(max(left, SOONEST_S), POLL_S)

    def _say(self, problem: str) -> None:
        if self._log is not None and bool(problem) != bool(self.problem):
            if problem:
                self._log.warning("tokens cannot be read; those that are known hold", why=problem)
            else:
                self._log.info("tokens can be read again")
        self.problem = problem


def caller_of(token: Token) -> Caller:
    """What the holder of this token may do."""
    projects = None if token.projects is None else frozenset(token.projects)
    return Caller(token.id, token.may_write, projects, token.expires_ms)
