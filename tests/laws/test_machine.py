"""Everything at once: a store, two followers and three clients, and a wire that loses, doubles and reorders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.domain import patch as merge_patch
from pipeline.domain import status
from pipeline.domain.replica import Replica
from pipeline.domain.store import Limits, Store
from pipeline.domain.versioned import Ledger
from tests.laws.looks import CLOCK, WALL
from tests.laws.truth import Chance, Court, Poll, Sighting, World

LIMITS = Limits(max_entries=4, max_tombstones=2, max_sessions=2)
chances = st.integers(0, 2**32).map(Chance)


@dataclass
class Delta:
    project: str
    epoch: str
    from_: int
    to: int
    patch: dict[str, Any]


@dataclass
class Heartbeat:
    epoch: str
    heads: dict[str, tuple[int, str, bool]]
    counted: bool


@dataclass
class Image:
    project: str
    epoch: str
    version: int
    floor: int
    complete: bool
    entries: dict[str, Any]
    gone: dict[str, Any]


@dataclass
class Node:
    """What `pipeline.follow.Follower` does, without a bus."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    feed: list[Delta | Heartbeat] = field(default_factory=list)
    answers: list[Delta | Image] = field(default_factory=list)
    wants: dict[str, tuple[str, int]] = field(default_factory=dict)
    spoilt: dict[str, Ledger] = field(default_factory=dict)

    def is_spoilt(self, project: str) -> bool:
        replica = self.replicas.get(project)
        return replica is not None and project in self.spoilt and self.spoilt[project] is replica.ledger

    def take(self, message: Delta | Heartbeat) -> None:
        if isinstance(message, Delta):
            replica = self.replicas.setdefault(message.project, Replica())
            taken = replica.take(message.epoch, message.from_, message.to, message.patch)
            if taken in ("gap", "epoch"):
                self.wants[message.project] = (message.epoch, replica.version(message.epoch))
            return
        for project, (version, hash_, complete) in message.heads.items():
            replica = self.replicas.setdefault(project, Replica())
            checked = replica.check(message.epoch, version, hash_, complete)
            if checked == "hash":
                assert self.is_spoilt(project), f"the copy of {project} is wrong at version {version}"
                self.wants[project] = ("", -1)
            elif checked != "same":
                self.wants[project] = (message.epoch, replica.version(message.epoch))
        if message.counted:
            for project in [name for name in self.replicas if name not in message.heads]:
                del self.replicas[project]

    def take_answer(self, answer: Delta | Image) -> None:
        if isinstance(answer, Delta):
            self.take(answer)
        else:
            replica = self.replicas.setdefault(answer.project, Replica())
            ledger = Ledger.load(answer.version, answer.floor, answer.entries, answer.gone)
            replica.load(answer.epoch, ledger, answer.complete)


@dataclass
class Client:
    """Knows merge patch and the state hash, and nothing else of treewire."""

    project: str
    epoch: str = ""
    version: int = -1
    state: dict[str, Any] = field(default_factory=dict)

    def sync(self, replica: Replica) -> None:
        ledger = replica.ledger
        if ledger is None or (replica.epoch == self.epoch and ledger.version < self.version):
            return
        patch = ledger.since(self.version) if replica.epoch == self.epoch else None
        self.state = ledger.state() if patch is None else merge_patch.merge(self.state, patch)
        self.epoch, self.version = replica.epoch, ledger.version
        assert merge_patch.state_hash(self.state) == ledger.hash()
        assert merge_patch.prune(self.state) == merge_patch.prune(ledger.state())


class Everything(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.wall = WALL
        self.wire: list[Sighting | Poll] = []
        self.dead: set[tuple[str, int]] = set()
        self.epochs = 0
        self.hashes: dict[tuple[str, str, int], str] = {}
        self.nodes = [Node(), Node()]
        self.clients = [Client("web"), Client("web"), Client("api")]
        self.shown: dict[tuple[int, str], tuple[Replica, str, int]] = {}
        self._start()

    def _start(self) -> None:
        self.epochs += 1
        self.epoch = f"e{self.epochs}"
        self.court = Court(self.world, Store(CLOCK, self.world.tick(), LIMITS), self.dead)
        self.published: dict[str, int] = {}

    # ── the truth, and looks at it ───────────────────────────────────────────────────────────────

    @initialize(chance=chances)
    def begin(self, chance: Chance) -> None:
        self.wire += self.world.live(chance, 4)

    @rule(chance=chances, steps=st.integers(1, 4))
    def happen(self, chance: Chance, steps: int) -> None:
        self.wire += self.world.live(chance, steps)
        if chance.random() < 0.5:
            self.wire += self.world.read("catalog", chance)

    @rule(project=st.sampled_from(["web", "api"]))
    def drop_an_empty_project(self, project: str) -> None:
        self.world.tick()
        if all(home.register("life").value[0] != project for home in self.world.alive(self.world.now).values()):
            self.world.projects.discard(project)

    # ── the wire ─────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.wire)
    @rule(chance=chances, most=st.integers(1, 8))
    def deliver(self, chance: Chance, most: int) -> None:
        """A batch, in any order, with losses and doubles; all of it is published as one delta per project."""
        for _ in range(most):
            if not self.wire:
                break
            index = chance.randrange(min(len(self.wire), chance.choice([1, 3, 1000])))
            message = self.wire[index] if chance.random() < 0.15 else self.wire.pop(index)
            if chance.random() < 0.85:
                self.court.take(message, self.wall)
        assert self.court.store.sweep() == [], "a census left somebody behind"
        self._publish()
        if chance.random() < 0.5:
            self._beat()

    @rule(step=st.integers(-3_600_000, 3_600_000))
    def step_the_wall_clock(self, step: int) -> None:
        self.wall += step

    @rule(who=st.sampled_from(["store", 0, 1]))
    def crash(self, who: str | int) -> None:
        if isinstance(who, int):
            self.nodes[who] = Node()
        else:
            self._start()
            for node in self.nodes:
                node.answers.clear()

    def _publish(self) -> None:
        store = self.court.store
        for project in sorted(store.touched):
            ledger = store.projects.get(project)
            if ledger is None:
                continue
            before = self.published.get(project, ledger.floor)
            if ledger.version > before and (patch := ledger.since(before)) is not None:
                for node in self.nodes:
                    node.feed.append(Delta(project, self.epoch, before, ledger.version, patch))
            self.published[project] = ledger.version
        store.touched.clear()
        for project in store.removed_projects:
            self.published.pop(project, None)
            for node in self.nodes:
                node.replicas.pop(project, None)
        store.removed_projects.clear()
        for project, ledger in store.projects.items():
            self.hashes[self.epoch, project, ledger.version] = ledger.hash()

    # ── followers and clients ────────────────────────────────────────────────────────────────────

    @rule(which=st.integers(0, 1), chance=chances)
    def follow(self, which: int, chance: Chance) -> None:
        """The feed comes in order, with losses and doubles; answers come when they come."""
        node = self.nodes[which]
        most = chance.randint(1, 6)
        for message in node.feed[:most]:
            for _ in range(chance.choice([0, 1, 1, 1, 1, 2])):
                node.take(message)
                self._look_at(which)
        del node.feed[:most]
        self._ask(which)
        while node.answers and chance.random() < 0.7:
            node.take_answer(node.answers.pop(chance.randrange(len(node.answers))))
            self._look_at(which)

    def _beat(self) -> None:
        heartbeat = self._heartbeat()
        for node in self.nodes:
            node.feed.append(heartbeat)

    def _heartbeat(self) -> Heartbeat:
        store = self.court.store
        heads = {
            name: (ledger.version, ledger.hash(), store.is_complete(name)) for name, ledger in store.projects.items()
        }
        return Heartbeat(self.epoch, heads, store.complete)

    def _ask(self, which: int) -> None:
        node = self.nodes[which]
        for project, (epoch, version) in node.wants.items():
            ledger = self.court.store.projects.get(project)
            if ledger is None:
                continue
            patch = ledger.since(version) if epoch == self.epoch else None
            if patch is not None:
                node.answers.append(Delta(project, self.epoch, version, ledger.version, patch))
            else:
                complete = self.court.store.is_complete(project)
                image = Image(
                    project, self.epoch, ledger.version, ledger.floor, complete, ledger.dump(), dict(ledger.gone)
                )
                node.answers.append(image)
        node.wants.clear()

    @rule(which=st.integers(0, 1), chance=chances)
    def spoil_a_copy(self, which: int, chance: Chance) -> None:
        """A fault that no rule foresees: only the hash can tell."""
        node = self.nodes[which]
        copies = [(name, one.ledger) for name, one in node.replicas.items() if one.ledger is not None]
        if copies:
            project, ledger = chance.choice(copies)
            if ledger.entries:
                workspace = chance.choice(list(ledger.entries))
                ledger.entries[workspace].group("git").values["files"] = 99
                ledger._dirty.add(workspace)
                node.spoilt[project] = ledger

    @rule(client=st.integers(0, 2), which=st.integers(0, 1))
    def connect(self, client: int, which: int) -> None:
        """A client comes with its cursor to either follower."""
        replica = self.nodes[which].replicas.get(self.clients[client].project)
        if replica is not None and not self.nodes[which].is_spoilt(self.clients[client].project):
            self.clients[client].sync(replica)

    # ── what must hold ───────────────────────────────────────────────────────────────────────────

    def _look_at(self, which: int) -> None:
        for project, replica in self.nodes[which].replicas.items():
            if replica.ledger is None:
                continue
            now = replica.ledger.version
            before, epoch, version = self.shown.get((which, project), (None, "", 0))
            was_spoilt = project in self.nodes[which].spoilt
            if before is not replica or epoch != replica.epoch:
                assert replica.complete, "an epoch is shown before it is complete"
            elif not was_spoilt:
                assert now >= version, "the copy went back"
            self.shown[which, project] = (replica, replica.epoch, now)
            if self.nodes[which].is_spoilt(project):
                continue
            self.nodes[which].spoilt.pop(project, None)
            expected = self.hashes.get((replica.epoch, project, now))
            assert expected is None or expected == replica.ledger.hash(), f"{project} differs at version {now}"

    @invariant()
    def nothing_grows(self) -> None:
        store = self.court.store
        assert len(store.entries) <= LIMITS.max_entries
        assert len(store.tombstones) <= LIMITS.max_tombstones
        for entry in store.entries.values():
            assert len(entry.values) <= 8 + LIMITS.max_sessions
            assert set(entry.history) <= set(entry.looks)
            assert len(entry.looks) <= 7 + 2 * LIMITS.max_sessions
        named = {name for ledger in store.projects.values() for name in ledger.entries}
        assert named == set(store.entries)

    @invariant()
    def status_follows_from_the_rest(self) -> None:
        for entry in self.court.store.entries.values():
            assert entry.values["status"] == status.derive(entry.values)

    def teardown(self) -> None:
        self.court.settle(self.wire)
        self.court.converged()
        self._publish()
        for which, node in enumerate(self.nodes):
            node.feed.clear()
            node.answers.clear()
            node.wants.clear()
            for _ in range(3):
                node.take(self._heartbeat())
                self._ask(which)
                while node.answers:
                    node.take_answer(node.answers.pop(0))
                self._look_at(which)
            for project, ledger in self.court.store.projects.items():
                replica = node.replicas[project]
                assert (replica.epoch, replica.complete) == (self.epoch, True)
                assert replica.ledger is not None
                assert replica.ledger.state() == ledger.state()
                for client in self.clients:
                    if client.project == project:
                        client.sync(replica)
                        assert merge_patch.state_hash(client.state) == ledger.hash()


TestEverything = Everything.TestCase


ACTS = ("happen", "deliver", "deliver", "follow", "follow", "follow", "connect", "connect")


@given(chances)
def test_everything_at_once_along_a_random_walk(chance: Chance) -> None:
    """The same machine, each rule as often as in life: so it gets further than by even choice."""
    machine = Everything()
    machine.begin(chance)
    for _ in range(chance.randint(10, 60)):
        act = chance.choice(
            ["happen", "deliver", "deliver", "follow", "follow", "follow", "connect", "connect", "fault"]
        )
        if act == "happen":
            machine.happen(chance, chance.randint(1, 4))
        elif act == "deliver":
            machine.deliver(chance, chance.randint(1, 8))
        elif act == "follow":
            machine.follow(chance.randrange(2), chance)
        elif act == "connect":
            machine.connect(chance.randrange(3), chance.randrange(2))
        elif chance.random() < 0.3:
            machine.crash(chance.choice(["store", 0, 1]))
        elif chance.random() < 0.5:
            machine.spoil_a_copy(chance.randrange(2), chance)
        else:
            machine.drop_an_empty_project(chance.choice(["web", "api"]))
            machine.step_the_wall_clock(chance.randint(-3_600_000, 3_600_000))
        machine.nothing_grows()
        machine.status_follows_from_the_rest()
    machine.teardown()
