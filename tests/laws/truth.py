"""What is really the case, and looks at it: registers that change over boot time, read at a known instant.

A store only sees the interval in which a look was read. The tests also know the instant, and with it which change
of the register the look saw: so they can tell an older truth from a newer one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from pipeline.domain.model import Census, Ci, Git, Key, Life, Look, Pr, Session
from pipeline.domain.order import Ruling
from pipeline.domain.store import Store, Tally
from tests.laws.looks import look, stamp

PROJECTS = ("web", "api")
WORKSPACES = ("w1", "w2", "w2", "w3")
SESSIONS = ("session:s1", "session:s2", "session:s3")
MAX_SESSIONS = 2

Subject = tuple[str, int, str]  # workspace, incarnation, group


class Chance(Random):
    """Random choices that can be made again: it shows its seed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed

    def __repr__(self) -> str:
        return f"Chance({self._seed})"


@dataclass(frozen=True)
class Sighting:
    """A look, and the change of the register that it saw; of an end, ``dead`` is set."""

    look: Look
    change: int
    dead: bool = False


@dataclass(frozen=True)
class Poll:
    """A census with the sightings in it, and the instant at which the catalog was read."""

    census: Census
    sightings: list[Sighting]
    read: int


@dataclass
class Register:
    """A value over time. Times are unique, so each change has its own."""

    changes: list[tuple[int, Any]] = field(default_factory=list)

    def set(self, now: int, value: Any) -> None:
        self.changes.append((now, value))

    def at(self, instant: int) -> tuple[int, Any]:
        """Which change was in force at `instant`, and its value; -1 before the first."""
        number = sum(when <= instant for when, _ in self.changes) - 1
        return number, self.changes[number][1] if number >= 0 else None

    @property
    def value(self) -> Any:
        return self.changes[-1][1] if self.changes else None


@dataclass
class Home:
    """One incarnation of a workspace."""

    incarnation: int
    born: int
    died: int | None = None
    registers: dict[str, Register] = field(default_factory=dict)

    def register(self, group: str) -> Register:
        return self.registers.setdefault(group, Register())


# What can happen: operation, workspace, a small number, whether its source tells of it, and whether with a revision.
Happening = tuple[str, str, int, bool, bool]
OPERATIONS = ("create", "rename", "git", "session", "git", "pr", "ci", "session", "archive", "vanish", "move")


def anything(chance: Chance, operations: tuple[str, ...] = OPERATIONS) -> Happening:
    """Something that may happen; two in three are told of."""
    return (
        chance.choice(operations),
        chance.choice(WORKSPACES),
        chance.randrange(6),
        chance.random() < 0.67,
        chance.random() < 0.4,
    )


class World:
    def __init__(self) -> None:
        self.now = 1000
        self.homes: dict[tuple[str, int], Home] = {}
        self.latest: dict[str, int] = {}
        self.projects = {PROJECTS[0]}
        self._seq = 0

    def tick(self) -> int:
        self.now += 1
        return self.now

    def home(self, workspace: str) -> Home | None:
        """The living incarnation."""
        found = self.homes.get((workspace, self.latest.get(workspace, 0)))
        return found if found is not None and found.died is None else None

    def alive(self, instant: int) -> dict[str, Home]:
        return {
            workspace: home
            for (workspace, _), home in self.homes.items()
            if home.born <= instant and (home.died is None or home.died > instant)
        }

    def value(self, subject: Subject, change: int) -> Any:
        workspace, incarnation, group = subject
        return self.homes[workspace, incarnation].registers[group].changes[change][1]

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def happen(self, happening: Happening) -> list[Sighting]:
        """Let something happen; returns what its source tells of it, if it does."""
        operation, workspace, number, is_told, revised = happening
        home = self.home(workspace)
        now = self.tick()
        if home is None:
            incarnation = self.latest[workspace] = self.latest.get(workspace, 0) + 1
            home = self.homes[workspace, incarnation] = Home(incarnation, now)
            project = PROJECTS[number % 2]
            self.projects.add(project)
            home.register("life").set(now, (project, Life(name=f"n{number % 3}", phase="ready")))
            groups = ["life"]
        else:
            groups = self._change(home, operation, number, now)
        if not is_told:
            return []
        return [self.look(workspace, home, group, now, now, now, revised=revised, live=True) for group in groups]

    def _change(self, home: Home, operation: str, number: int, now: int) -> list[str]:
        life = home.register("life")
        project, value = life.value
        if operation in ("archive", "vanish"):
            home.died = now
            for name in SESSIONS:
                if home.register(name).value is not None:
                    home.register(name).set(now, None)
        if operation == "rename":
            life.set(now, (project, Life(name=f"n{number % 3}", phase="ready")))
        elif operation == "move":
            project = PROJECTS[number % 2]
            self.projects.add(project)
            life.set(now, (project, value))
        elif operation == "archive":
            life.set(now, (project, Life(name=value.name, phase="archived" if number else "archiving")))
        elif operation == "vanish":
            return []
        elif operation == "git":
            home.register("git").set(now, Git(files=number % 3))
            return ["git"]
        elif operation == "pr":
            key = Key(1 + number % 2, "abc"[number % 3])
            former = home.register("pr").value
            home.register("pr").set(now, (key, Pr(number=key.pr, state="open" if number % 2 else "draft")))
            if former is None or former[0] != key:
                home.register("ci").set(now, (key, Ci(state="pending")))
            return ["pr"]
        elif operation == "ci":
            if home.register("pr").value is None:
                return []
            key = home.register("pr").value[0]
            home.register("ci").set(now, (key, Ci(state="success" if number % 2 else "pending")))
            return ["ci"]
        elif operation == "session":
            name = SESSIONS[number % 3]
            others = [other for other in SESSIONS if other != name and home.register(other).value is not None]
            going = number >= 3 or len(others) >= MAX_SESSIONS
            home.register(name).set(now, None if going else Session(state="idle" if number % 2 else "working"))
            return [name]
        else:
            return []
        return ["life"]

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def look(
        self,
        workspace: str,
        home: Home,
        group: str,
        began: int,
        read: int,
        ended: int,
        *,
        revised: bool = False,
        live: bool = False,
    ) -> Sighting:
        change, value = home.register(group).at(read)
        project, key = home.register("life").at(read)[1][0], None
        if group == "life":
            value = value[1]
        elif group in ("pr", "ci") and value is not None:
            key, value = value
        rest: dict[str, Any] = {}
        if revised and group != "git":
            rest = {"domain": "db", "revision": change + 1}
        elif group.startswith("session:"):
            rest = {"domain": "db"}
        if live and group.startswith("session:"):
            self._seq += 1
            rest |= {"run": "agent", "seq": self._seq}
        seen = look(
            group,
            value,
            began,
            ended,
            project=project,
            workspace=workspace,
            incarnation=home.incarnation,
            key=key,
            **rest,
        )
        dead = group == "life" and value.phase in ("archiving", "archived")
        return Sighting(seen, change, dead)

    def live(self, chance: Chance, steps: int, operations: tuple[str, ...] = OPERATIONS) -> list[Sighting | Poll]:
        """Let things happen and be read; returns every message that came of it, in the order of sending."""
        sent: list[Sighting | Poll] = []
        for _ in range(steps):
            what = chance.choice(["happen", "happen", "happen", "git", "catalog"])
            if what == "happen":
                sent += self.happen(anything(chance, operations))
            else:
                sent += self.read(what, chance, operations)
        return sent

    def read(self, what: str, chance: Chance, operations: tuple[str, ...] = OPERATIONS) -> list[Sighting | Poll]:
        """Read git or the catalog, while things happen before and after the instant of reading."""
        sent: list[Sighting | Poll] = []
        began = self.tick()
        for _ in range(chance.randrange(3)):
            sent += self.happen(anything(chance, operations))
        read = self.tick()
        for _ in range(chance.randrange(3)):
            sent += self.happen(anything(chance, operations))
        ended = self.tick()
        if what == "git":
            return [*sent, *self.gits(began, read, ended)]
        return [*sent, self.poll(began, read, ended, revised=chance.random() < 0.4)]

    def poll(self, began: int, read: int, ended: int, revised: bool) -> Poll:
        """The catalog as it stood at `read`."""
        sightings = [
            self.look(workspace, home, group, began, read, ended, revised=revised)
            for workspace, home in self.alive(read).items()
            for group in ("life", "pr", "ci", *SESSIONS)
            if group == "life" or home.register(group).at(read)[1] is not None
        ]
        looks = [sighting.look for sighting in sightings]
        interval = stamp(began, ended)
        return Poll(Census(interval, "catalog", "db", sorted(self.projects), looks), sightings, read)

    def gits(self, began: int, read: int, ended: int) -> list[Sighting]:
        return [
            self.look(workspace, home, "git", began, read, ended)
            for workspace, home in self.alive(read).items()
            if home.register("git").at(read)[1] is not None
        ]


class Court:
    """A store, and the newest truth that it has been told of each group: it must never go back behind that."""

    def __init__(self, world: World, store: Store, dead: set[tuple[str, int]] | None = None) -> None:
        self.world, self.store = world, store
        self.known: dict[Subject, int] = {}
        self.dead: set[tuple[str, int]] = set() if dead is None else dead
        self.unsettled = False

    def take(self, message: Sighting | Poll, wall_ms: int = 0) -> None:
        if isinstance(message, Sighting):
            self._judge(message, self.store.admit(message.look, wall_ms))
        else:
            self._take_poll(message, wall_ms)
        self.check()

    def _take_poll(self, poll: Poll, wall_ms: int) -> None:
        before = {name: entry.incarnation for name, entry in self.store.entries.items()}
        tally: Tally = self.store.census(poll.census, wall_ms)
        for sighting, ruling in zip(poll.sightings, tally.rulings, strict=True):
            self._judge(sighting, ruling)
        self.unsettled = self.unsettled or tally.held
        alive = self.world.alive(poll.read)
        for name in tally.buried:
            home = alive.get(name)
            gone = before.get(name)
            assert home is None or gone is None or home.incarnation != gone, f"{name} was alive and is buried"
            if gone is not None:
                self.dead.add((name, gone))
        for name, entry in self.store.entries.items():
            for group, current in entry.looks.items():
                if group in SESSIONS and current.stamp == poll.census.stamp and current.value is None:
                    subject = (name, entry.incarnation, group)
                    change, value = self.world.homes[name, entry.incarnation].registers[group].at(poll.read)
                    assert value is None, f"{subject} was alive and has ended"
                    self.known[subject] = max(change, self.known.get(subject, -1))

    def _judge(self, sighting: Sighting, ruling: Ruling) -> None:
        look = sighting.look
        subject = (look.workspace, look.incarnation, look.group)
        if ruling.verdict in ("applied", "confirmed"):
            if ruling.verdict == "applied" or ruling.cause.endswith("the value stays"):
                newest = self.known.get(subject, -1)
                assert sighting.change >= newest, f"{subject} went back from change {newest} to {sighting.change}"
            self.known[subject] = max(sighting.change, self.known.get(subject, -1))
        elif ruling.verdict in ("overlap", "wrong_key") or ruling.cause.startswith("the workspace has as many"):
            self.unsettled = True
        if sighting.dead and (ruling.verdict == "applied" or ruling.cause.startswith("an archived")):
            self.dead.add((look.workspace, look.incarnation))

    def check(self) -> None:
        """What is shown is what was true at the newest change that was told, and nobody came back from the dead."""
        for name, entry in self.store.entries.items():
            assert (name, entry.incarnation) not in self.dead, f"{name} came back from the dead"
            if "ci" in entry.values:
                assert entry.looks["ci"].key == entry.looks["pr"].key, f"{name} shows checks of another pull request"
            for group in entry.looks:
                subject = (name, entry.incarnation, group)
                if subject not in self.known:
                    continue
                shown, true = entry.values.get(group), self.world.value(subject, self.known[subject])
                if group == "life":
                    assert (entry.project, shown) == true, subject
                elif group in ("pr", "ci"):
                    assert shown is None or true is None or shown == true[1], subject
                else:
                    assert shown == true, subject

    def settle(self, late: list[Sighting | Poll], most: int = 6) -> None:
        """One complete round of looks, the late messages after it, then the relooks that were asked for."""
        for _ in range(most):
            began, read, ended = self.world.tick(), self.world.tick(), self.world.tick()
            self.unsettled = False
            self.take(self.world.poll(began, read, ended, revised=False))
            for sighting in self.world.gits(began, read, ended):
                self.take(sighting)
            for message in late:
                self.take(message)
            late = []
            if not self.unsettled:
                break

    def converged(self) -> None:
        """The store shows the truth, whole and nothing else."""
        alive = self.world.alive(self.world.now)
        assert set(self.store.entries) == set(alive)
        for name, home in alive.items():
            entry = self.store.entries[name]
            assert entry.incarnation == home.incarnation
            assert (entry.project, entry.values["life"]) == home.register("life").value
            for group in ("git", "pr", "ci", *SESSIONS):
                true = home.register(group).value
                if group in ("pr", "ci") and true is not None:
                    true = true[1]
                assert entry.values.get(group) == true, f"{name} {group}"


def garbled(messages: list[Sighting | Poll], chance: Chance) -> list[Sighting | Poll]:
    """Some lost, some doubled, and the order is another."""
    sent = [message for message in messages for _ in range(chance.choice([0, 1, 1, 1, 2]))]
    reach = chance.choice([1, 4, 1000])
    places = sorted(range(len(sent)), key=lambda place: place + chance.uniform(0, reach))
    return [sent[place] for place in places]
