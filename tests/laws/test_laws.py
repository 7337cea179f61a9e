"""The laws of the merge rule, in the order in which the design states them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.domain import patch as merge_patch
from pipeline.domain import versioned
from pipeline.domain.model import Census, Git, Look
from pipeline.domain.replica import Replica
from pipeline.domain.store import EXPLAIN_DEPTH, LOST_DEPTH, Limits, Store
from pipeline.domain.versioned import Ledger
from tests.laws.looks import CLOCK, WALL, census, git, life, look, session, stamp, store
from tests.laws.strategies import Write, content, histories, written
from tests.laws.truth import Chance, Court, Sighting, World, garbled

LIMITS = Limits(max_entries=4, max_tombstones=2, max_sessions=2)

# What happens is drawn from a seed, which reaches further than shrinking does; a shorter life is the same one, cut.
chances = st.integers(0, 2**32).map(Chance)
lengths = st.integers(5, 40)
orders = st.randoms(use_true_random=False)


# ── 1 ────────────────────────────────────────────────────────────────────────────────────────────


@given(chances, lengths)
def test_law_01_a_group_never_shows_an_older_truth_after_a_newer_one(chance: Chance, length: int) -> None:
    world = World()
    court = Court(world, Store(CLOCK, world.tick(), LIMITS))
    for message in garbled(world.live(chance, length), chance):
        court.take(message)


@given(chances)
def test_law_01_holds_for_one_register_whatever_the_intervals(chance: Chance) -> None:
    """A register that flips, its events in sequence, and polls of it that touch, nest and coincide."""
    for _ in range(5):
        last = chance.randint(4, 16)
        changes = sorted(chance.sample(range(last), chance.randint(1, min(5, last))))
        # Each look with the number of the change that it saw: a change comes just after its instant.
        looks = [
            (number, git(number % 2, 11 + when, run="events", seq=number))
            for number, when in enumerate(changes, 1)
            if chance.random() < 0.6
        ]
        for _ in range(chance.randint(1, 5)):
            began, read, ended = sorted(chance.randint(0, last) for _ in range(3))
            number = sum(when < read for when in changes)
            looks.append((number, git(number % 2, 10 + began, 10 + ended)))
        chance.shuffle(looks)
        s = store()
        s.admit(life(5), WALL)
        newest = -1
        for number, one in looks:
            ruling = s.admit(one, WALL)
            if ruling.verdict == "applied" or ruling.cause.endswith("the value stays"):
                assert number >= newest, (changes, looks)
            if ruling.verdict in ("applied", "confirmed"):
                newest = max(newest, number)
            assert s.entries["w"].values["git"] == Git(files=newest % 2)


# ── 2 ────────────────────────────────────────────────────────────────────────────────────────────


@given(chances, lengths)
def test_law_02_after_the_last_change_one_round_of_looks_converges_to_the_truth(chance: Chance, length: int) -> None:
    """Whatever was lost before, and although the rest comes late."""
    world = World()
    court = Court(world, Store(CLOCK, world.tick(), LIMITS))
    messages = garbled(world.live(chance, length), chance)
    cut = chance.randint(0, len(messages))
    for message in messages[:cut]:
        court.take(message)
    court.settle(messages[cut:])
    court.converged()


# ── 3 ────────────────────────────────────────────────────────────────────────────────────────────


def deltas_of(history: list[Write], order: Any, ledger: Ledger) -> list[tuple[int, int, dict[str, Any], Any, str]]:
    """The deltas of batches of writes: from, to, patch, the state and the hash at ``to``."""
    deltas = []
    before = ledger.version
    for write in history:
        written(ledger, write)
        if ledger.version > before and order.random() < 0.5:
            patch = ledger.since(before)
            assert patch is not None
            deltas.append((before, ledger.version, patch, content(ledger.state()), ledger.hash()))
            before = ledger.version
    return deltas


@given(histories, orders)
def test_law_03_who_applies_deltas_holds_exactly_the_state_of_each_version(history: list[Write], order: Any) -> None:
    ledger, follower = Ledger(), Replica()
    follower.load("e", Ledger(), True)
    client: dict[str, Any] = {}
    for before, to, patch, state, hash_ in deltas_of(history, order, ledger):
        assert follower.take("e", before, to, patch) == "applied"
        client = merge_patch.merge(client, patch)
        assert follower.ledger is not None
        assert (follower.ledger.version, follower.ledger.hash()) == (to, hash_)
        assert content(follower.ledger.state()) == content(client) == state
        assert merge_patch.state_hash(client) == hash_
        assert follower.check("e", to, hash_, True) == "same"


@given(chances, lengths)
def test_law_03_holds_for_the_store(chance: Chance, length: int) -> None:
    world = World()
    s = Store(CLOCK, world.tick(), LIMITS)
    court = Court(world, s)
    clients: dict[str, Any] = {}
    at: dict[str, int] = {}
    for message in garbled(world.live(chance, length), chance):
        court.take(message)
        for project in s.removed_projects:
            clients.pop(project, None)
            at.pop(project, None)
        s.removed_projects.clear()
        for project in s.touched:
            if (ledger := s.projects.get(project)) is None:
                continue
            patch = ledger.since(at.get(project, ledger.floor))
            assert patch is not None
            clients[project] = merge_patch.merge(clients.get(project, {}), patch)
            at[project] = ledger.version
        s.touched.clear()
        for project, ledger in s.projects.items():
            assert merge_patch.state_hash(clients.get(project, {})) == ledger.hash()


# ── 4 ────────────────────────────────────────────────────────────────────────────────────────────


@given(histories, orders)
def test_law_04_since_any_version_then_live_is_snapshot_then_live(history: list[Write], order: Any) -> None:
    """From the store itself, and from followers that were loaded, or fed with deltas of many versions."""
    ledger = Ledger()
    states: dict[int, Any] = {0: {}}
    followers = [Ledger(), Ledger()]
    for write in history:
        written(ledger, write)
        states[ledger.version] = ledger.state()
        fed = order.choice(followers)
        patch = ledger.since(fed.version)
        assert patch is not None
        if order.random() < 0.4:
            fed.apply(patch, ledger.version)
        if order.random() < 0.1:
            image = deepcopy((ledger.dump(), dict(ledger.gone)))
            followers[order.randint(0, 1)] = Ledger.load(ledger.version, ledger.floor, *image)
        for one in (ledger, *followers):
            now = content(states[one.version])
            for version, state in states.items():
                delta = one.since(version)
                if delta is None:
                    assert one is not ledger or version > one.version
                else:
                    assert content(merge_patch.merge(state, delta)) == now, f"from {version} to {one.version}"
    assert ledger.floor == 0


# ── 5 ────────────────────────────────────────────────────────────────────────────────────────────


@given(histories, orders)
def test_law_05_one_delta_over_many_versions_equals_the_deltas_between(history: list[Write], order: Any) -> None:
    ledger = Ledger()
    cuts = []
    for write in history:
        written(ledger, write)
        cuts.append((ledger.version, deepcopy(ledger.state())))
    assume(cuts)
    begin = order.randrange(len(cuts))
    version, state = cuts[begin]
    replayed = Ledger()
    for write in history[: begin + 1]:
        written(replayed, write)
    stepwise, follower = state, Ledger.load(replayed.version, 0, replayed.dump(), dict(replayed.gone))
    for write in history[begin + 1 :]:
        before = replayed.version
        written(replayed, write)
        patch = replayed.since(before)
        assert patch is not None
        stepwise = merge_patch.merge(stepwise, patch)
        follower.apply(patch, replayed.version)
    at_once = ledger.since(version)
    assert at_once is not None
    assert content(merge_patch.merge(state, at_once)) == content(stepwise) == content(ledger.state())
    assert content(follower.state()) == content(stepwise)


# ── 6 ────────────────────────────────────────────────────────────────────────────────────────────


@given(histories, orders)
def test_law_06_replaying_what_a_snapshot_holds_is_harmless(history: list[Write], order: Any) -> None:
    ledger = Ledger()
    deltas = deltas_of(history, order, ledger)
    assume(deltas)
    _, version, _, state, hash_ = deltas[order.randrange(len(deltas))]
    copy = Ledger()
    client: dict[str, Any] = {}
    for _, to, patch, _, _ in deltas:
        if to <= version:
            copy.apply(deepcopy(patch), to)
            client = merge_patch.merge(client, patch)
    replica = Replica()
    replica.load("e", copy, True)
    for before, to, patch, _, _ in deltas:
        if to <= version:
            assert replica.take("e", before, to, patch) == "old"
    assert replica.ledger is not None
    assert (replica.ledger.version, replica.ledger.hash()) == (version, hash_)
    assert content(client) == state
    # A longer delta, of which the snapshot holds the first part.
    for begin, _, _, _, _ in deltas:
        if begin <= version < ledger.version:
            longer = ledger.since(begin)
            assert longer is not None
            assert content(merge_patch.merge(client, longer)) == content(ledger.state())


@given(chances, lengths)
def test_law_06_looks_that_come_again_change_nothing(chance: Chance, length: int) -> None:
    """But for one that was refused: what stood in its way may be gone by the end of the census that it came with."""
    world = World()
    s = Store(CLOCK, world.tick(), LIMITS)
    for message in world.live(chance, length):
        first: list[str] = []
        versions: dict[str, int] = {}
        for _ in range(2):
            if isinstance(message, Sighting):
                rulings = [s.admit(message.look, WALL)]
            else:
                rulings = s.census(message.census, WALL).rulings
            first = first or [ruling.verdict for ruling in rulings]
            now = {project: ledger.version for project, ledger in s.projects.items()}
            versions = versions or now
        if isinstance(message, Sighting) or not {"wrong_key", "foreign"} & set(first):
            assert now == versions


# ── 7 ────────────────────────────────────────────────────────────────────────────────────────────

ENDS = ("create", "archive", "vanish", "rename")


@given(chances, lengths, st.booleans())
def test_law_07_what_is_gone_does_not_return_across_crashes_either(chance: Chance, length: int, crash: bool) -> None:
    """However few tombstones are kept, and if the store starts anew while old looks are still on their way."""
    world = World()
    started = world.tick()
    dead: set[tuple[str, int]] = set()
    messages = world.live(chance, length, ENDS)
    court = Court(world, Store(CLOCK, started, Limits(max_entries=4, max_tombstones=1)), dead)
    sent = garbled(messages, chance)
    cut = chance.randint(0, len(sent)) if crash else len(sent)
    for message in sent[:cut]:
        court.take(message)
    court = Court(world, Store(CLOCK, world.tick(), Limits(max_entries=4, max_tombstones=1)), dead)
    for message in sent[cut:]:
        court.take(message)
        assert not court.store.entries, "an entry was created by a look from before the start"
    court.settle(sent)
    court.converged()


# ── 8 ────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.integers(10, 40),
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 5)), min_size=1, max_size=6),
    st.integers(1, 70),
)
def test_law_08_a_newborn_survives_a_concurrent_census(
    began: int, lasting: int, births: list[tuple[int, int]], also: int
) -> None:
    """Who was looked at while or after the census ran stays; who was not, and is absent, goes."""
    s = store()
    s.admit(life(also, workspace="seen"), WALL)
    for number, (born, took) in enumerate(births):
        s.admit(life(born, born + took, workspace=f"w{number}"), WALL)
    found = [life(began, began + lasting, workspace="seen")]
    s.census(census(began, began + lasting, found), WALL)
    newborn = {f"w{number}" for number, (born, took) in enumerate(births) if born + took >= began}
    held = len(births) - len(newborn) > 5
    assert newborn <= set(s.entries)
    if not held:
        assert set(s.entries) == newborn | {"seen"}
        assert s.sweep() == []


# ── 9 ────────────────────────────────────────────────────────────────────────────────────────────

_few = st.integers(0, 6)
_garbage = st.builds(
    lambda kind, w, p, i, s, t, n, gone: {
        "life": life(
            t, t + n, workspace=f"w{w}", project=f"p{p}", incarnation=i, phase="archived" if gone else "ready"
        ),
        "git": git(n, t, workspace=f"w{w}", incarnation=i),
        "ci": look("ci", None, t, workspace=f"w{w}"),
        "session": session(
            None if gone else "idle", t, t + n, id=f"s{s}", workspace=f"w{w}", incarnation=i, domain="db" * (n % 2)
        ),
        "strange": look(f"g{s}", Git(), t, workspace=f"w{w}"),
    }[kind],
    st.sampled_from(["life", "life", "git", "ci", "session", "session", "strange"]),
    _few,
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(0, 40),
    st.integers(1, 60),
    _few,
    st.booleans(),
)
_counts = st.builds(
    lambda t, n, names: census(t, t + n, [life(t, t + n, workspace=f"w{w}", project="p0") for w in sorted(names)]),
    st.integers(1, 60),
    _few,
    st.sets(_few, max_size=4),
)


@given(st.lists(_garbage | _garbage | _garbage | _counts, min_size=10, max_size=80), st.sets(st.integers(0, 2)))
def test_law_09_memory_is_bounded_by_entries_and_tombstones(messages: list[Look | Census], watched: set[int]) -> None:
    limits = Limits(max_entries=3, max_tombstones=2, max_sessions=2)
    gone_cap, empty_cap = 3, 4
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(versioned, "GONE_CAP", gone_cap)
        patched.setattr(versioned, "EMPTY_GROUPS_CAP", empty_cap)
        s = Store(CLOCK, 0, limits)
        s.interest = frozenset(f"p{number}" for number in watched)
        for message in messages:
            if isinstance(message, Look):
                s.admit(message, WALL)
            else:
                s.census(message, WALL)
            assert len(s.entries) <= limits.max_entries
            assert len(s.tombstones) <= limits.max_tombstones
            assert len(s.lost) <= LOST_DEPTH
            groups = 8 + limits.max_sessions
            for entry in s.entries.values():
                assert len(entry.values) <= groups
                assert len(entry.looks) <= groups + limits.max_sessions
                assert set(entry.history) <= set(entry.looks)
                assert all(len(told) <= EXPLAIN_DEPTH for told in entry.history.values())
            for ledger in s.projects.values():
                assert len(ledger.gone) <= gone_cap
                assert all(len(shape) <= groups + empty_cap for _, shape in ledger.gone.values())
                assert all(len(entry.groups) <= groups + empty_cap for entry in ledger.entries.values())
            assert {name for ledger in s.projects.values() for name in ledger.entries} == set(s.entries)


# ── 10 ───────────────────────────────────────────────────────────────────────────────────────────


def timeless(value: Any) -> Any:
    """Without when things changed, which is for people to read."""
    return {k: timeless(v) for k, v in value.items() if k != "changed_at"} if isinstance(value, dict) else value


@given(chances, lengths)
def test_law_10_a_step_of_the_wall_clock_changes_nothing(chance: Chance, length: int) -> None:
    world = World()
    started = world.tick()
    steady, stepped = Store(CLOCK, started, LIMITS), Store(CLOCK, started, LIMITS)
    for message in garbled(world.live(chance, length), chance):
        wall = WALL + chance.randint(-3_600_000, 3_600_000)
        if isinstance(message, Sighting):
            assert steady.admit(message.look, WALL) == stepped.admit(message.look, wall)
        else:
            assert steady.census(message.census, WALL) == stepped.census(message.census, wall)
        assert steady.fence == stepped.fence
        assert steady.projects.keys() == stepped.projects.keys()
        for project, ledger in steady.projects.items():
            assert ledger.version == stepped.projects[project].version
            assert timeless(ledger.state()) == timeless(stepped.projects[project].state())


def test_an_interval_is_what_the_law_of_joining_needs() -> None:
    """Two looks that agree stand together for all the time between them: an event in between proves nothing."""
    s = store()
    s.admit(life(1), WALL)
    s.admit(git(1, 10, 20), WALL)
    s.admit(git(1, 15, 40), WALL)
    assert s.entries["w"].looks["git"].stamp == stamp(10, 40)
