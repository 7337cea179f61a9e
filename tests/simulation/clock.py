"""A clock that goes on by itself, what is due on it, and links between parts that lose, double, delay and reorder.

Everything in a run follows from its seed: there is no other clock, no thread and no socket.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

MS: Final = 1_000_000
S: Final = 1_000_000_000
START: Final = 1_000 * S


class Clock:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = START
        self.wall_offset_ms = 1_700_000_000_000
        self.trace: Callable[[str], None] | None = None
        self._due: list[tuple[int, int, Callable[[], object]]] = []
        self._n = 0

    def wall_ms(self) -> int:
        return self.wall_offset_ms + self.now // MS

    def after(self, delay: int, call: Callable[[], object]) -> None:
        self._n += 1
        heappush(self._due, (self.now + max(0, delay), self._n, call))

    def run(self, until: int) -> None:
        due = self._due
        while due and due[0][0] <= until:
            self.now, _, call = heappop(due)
            call()
        self.now = until

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def between(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{(self.now - START) / S:9.3f}  {text}")


class Part:
    """Something that can crash, be started anew, be stopped for a while, and be woken by messages."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name
        self.alive = True
        self.life = 0
        self._paused = False
        self._held: list[Callable[[], object]] = []

    def later(self, delay: int, call: Callable[[], object]) -> None:
        """As `Clock.after`, but not beyond this part's death, and not while it is stopped."""
        life = self.life

        def due() -> None:
            if life == self.life and self.alive:
                self.do(call)

        self.clock.after(delay, due)

    def do(self, call: Callable[[], object]) -> None:
        if self._paused:
            self._held.append(call)
        else:
            call()

    def crash(self) -> None:
        self.alive = False
        self.life += 1
        self._paused, self._held = False, []
        self.clock.say(f"{self.name} crashes")

    def restart(self) -> None:
        if not self.alive:
            self.alive = True
            self.clock.say(f"{self.name} starts")
            self.begin()

    def begin(self) -> None:
        """Start from nothing."""

    def pause(self, for_ns: int) -> None:
        if self._paused or not self.alive:
            return
        self._paused, life = True, self.life
        self.clock.say(f"{self.name} is stopped for {for_ns / S:.1f} s")

        def resume() -> None:
            if life == self.life:
                self._paused = False
                held, self._held = self._held, []
                for call in held:
                    call()

        self.clock.after(for_ns, resume)


class Faults:
    """How bad the wires are at the moment."""

    def __init__(self) -> None:
        self.drop = self.double = self.slow = self.swallow = 0.0

    def quiet(self) -> None:
        self.drop = self.double = self.slow = self.swallow = 0.0


def send(clock: Clock, faults: Faults, to: Part, take: Callable[[Any], object], message: Any) -> None:
    """Over a wire that may lose, double and overtake."""
    if clock.chance(faults.drop):
        return
    for _ in range(2 if clock.chance(faults.double) else 1):
        delay = clock.between(50_000, 2 * MS)
        if clock.chance(faults.slow):
            delay += clock.between(0, 3 * S)
        _arrive(clock, delay, to, lambda: take(message))


def _arrive(clock: Clock, delay: int, to: Part, call: Callable[[], object]) -> None:
    life = to.life
    clock.after(delay, lambda: to.do(call) if to.alive and to.life == life else None)
