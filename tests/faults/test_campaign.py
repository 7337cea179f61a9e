"""The campaign itself, for a short while; and that its judge would notice what must not be."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from pipeline.runtime.settings import Settings
from tests.faults import __main__ as command
from tests.faults import inject
from tests.faults.campaign import campaign
from tests.faults.inject import AT_ONCE, FAULTS, NAMES, Stage, draw_wave
from tests.faults.load import Load, told
from tests.faults.report import as_json, percentile, table
from tests.faults.screens import Crowd
from tests.faults.validate import Judge, counters
from tests.faults.wall import NO_COMPILER

FAULTS_HERE = 12
EVENTS = 24
SEED = 4
EPOCH = "e1"
PROJECT = "alpha-one"
NAME = "alpha-one-w0"


@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("cc"), reason=NO_COMPILER)
def test_a_dozen_faults_break_no_promise(tmp_path: Path) -> None:
    """S1, S3, S4, R1, O3: the whole deployment under supervisord, a hundred clients, real worktrees."""
    outcome = campaign(FAULTS_HERE, SEED, parent=tmp_path, events=EVENTS)
    assert outcome.well, table(outcome)
    found = json.loads(json.dumps(as_json(outcome)))
    assert found["faults"] == sum(one["count"] for one in found["by_fault"].values()) == FAULTS_HERE
    assert found["violations"] == []
    assert found["restart_s"]["n"] + sum(one["recovery_s"]["n"] for one in found["by_fault"].values()) > 0
    assert found["convergence_s"]["n"] == 2
    assert {name for name, one in found["processes"].items() if one["peak"]["mb"] > 10} >= {"aggregator", "gateway-1"}
    did = found["did"]
    assert did["states"] > 50
    assert did["copies"] > did["states"]
    assert did["values"] > did["states"], "what was shown was compared with what was ever true"
    assert did["crowd's resumed"] > 0
    for when in ("without", "while git hangs"):
        assert found["event_s"][when]["n"] == EVENTS
    assert "0 violations." in table(outcome)
    assert not list(tmp_path.iterdir()), "a history that shows nothing is not kept"


# ── a wrong history is noticed ───────────────────────────────────────────────────────────────────


def entry(title: int = 1, made: int = 1, **groups: Any) -> dict[str, Any]:
    return {"life": {"name": f"{NAME} {title}.{made}", "phase": "ready"}, **groups}


def rules(judge: Judge) -> list[str]:
    judge.settle()
    return [rule for rule, _, _ in judge.violations]


def state(judge: Judge, version: int, hash_: str, changed: dict[str, Any], epoch: str = EPOCH, began: int = 0) -> None:
    judge.state(epoch, PROJECT, version, hash_, changed, began)


@pytest.fixture
def judge() -> Judge:
    """Of a history without fault, up to version 2."""
    judge = Judge()
    judge.truth.trying(NAME, "life", 1)
    judge.truth.trying(NAME, "git", 5)
    judge.truth.lives[NAME] = 1
    state(judge, 1, "h1", {NAME: entry()})
    state(judge, 2, "h2", {NAME: entry(git={"insertions": 5})})
    judge.claim("c", EPOCH, PROJECT, 2, "h2")
    judge.claim("late", EPOCH, PROJECT, 3, "h3")
    state(judge, 3, "h3", {})
    return judge


def test_a_history_without_fault_is_well(judge: Judge) -> None:
    assert rules(judge) == []
    assert judge.checked == {"states": 3, "entries": 2, "copies": 2, "values": 3}


def test_a_copy_that_differs_from_what_was_published_is_noticed(judge: Judge) -> None:
    judge.during = ("kill gateway",)
    judge.claim("c", EPOCH, PROJECT, 2, "h1")
    assert rules(judge) == ["prefix"]
    assert judge.by_fault == {"kill gateway": 1}


def test_a_copy_that_is_ahead_of_what_is_published_is_compared_when_that_comes(judge: Judge) -> None:
    judge.claim("c", EPOCH, PROJECT, 4, "wrong")
    assert not judge.violations
    state(judge, 4, "h4", {})
    assert rules(judge) == ["prefix"]


def test_a_version_that_nobody_published_is_noticed(judge: Judge) -> None:
    state(judge, 5, "h5", {})
    judge.claim("c", EPOCH, PROJECT, 4, "h4")
    assert rules(judge) == ["prefix"]


def test_two_states_of_one_version_are_noticed(judge: Judge) -> None:
    state(judge, 3, "other", {})
    assert rules(judge) == ["prefix"]


def test_two_clients_that_differ_are_noticed_even_where_the_feed_was_missed(judge: Judge) -> None:
    judge.claim("one", "e0", PROJECT, 9, "x")
    judge.claim("two", "e0", PROJECT, 9, "y")
    assert rules(judge) == ["prefix"]


@pytest.mark.parametrize("shown", [entry(title=2), entry(git={"insertions": 6})])
def test_a_value_that_never_was_is_noticed(judge: Judge, shown: dict[str, Any]) -> None:
    state(judge, 4, "h4", {NAME: shown})
    assert rules(judge) == ["truth"]


def test_who_was_buried_and_comes_back_in_the_epoch_is_noticed(judge: Judge) -> None:
    judge.truth.lives[NAME] = 0
    state(judge, 4, "h4", {NAME: None})
    assert not judge.violations
    state(judge, 5, "h5", {NAME: entry(made=1)})
    assert rules(judge) == ["truth"]


def test_who_was_archived_before_an_epoch_and_is_shown_in_it_is_noticed(judge: Judge) -> None:
    judge.truth.ended(NAME, 1)
    state(judge, 1, "h1", {NAME: entry(made=2)}, "e2", began=2**62)
    assert not judge.violations
    state(judge, 2, "h2", {NAME: entry(made=1)}, "e2", began=2**62)
    assert rules(judge) == ["truth"]


def test_a_workspace_of_another_project_is_noticed(judge: Judge) -> None:
    state(judge, 4, "h4", {"beta-one-w0": entry()})
    assert rules(judge) == ["truth"]


def test_lines_that_vanish_are_noticed_unless_somebody_takes_the_worktree_away(judge: Judge) -> None:
    state(judge, 4, "h4", {NAME: entry(title=1, git={"insertions": 0})})
    assert rules(judge) == ["truth"]
    judge.violations.clear()
    state(judge, 5, "h5", {NAME: entry(title=1)})
    assert rules(judge) == ["truth"], "a failed look makes no numbers, and takes none away"
    judge.violations.clear()
    judge.truth.lives[NAME] = 0
    state(judge, 6, "h6", {NAME: entry(title=1, git={"insertions": 0})})
    judge.truth.lives[NAME] = 2
    state(judge, 7, "h7", {NAME: entry(title=1, made=2, git={"insertions": 0})})
    assert rules(judge) == [], "one that was just made has none yet"


def test_who_leaves_while_the_database_is_shrunk_is_noticed(judge: Judge) -> None:
    judge.keeps = True
    state(judge, 4, "h4", {NAME: None})
    assert rules(judge) == ["truth"]


def test_what_grows_beyond_its_bound_is_noticed(judge: Judge) -> None:
    judge.bound("descriptors of gateway-0", 10, 10)
    judge.bound("descriptors of gateway-0", 11, 10)
    assert rules(judge) == ["bounds"]


def test_every_group_is_counted_and_an_entry_tells_its_incarnation() -> None:
    shown = entry(7, 3, run={"port": 1001}, pr={"number": 4}, git={"insertions": 9}, sessions={"a": {"name": "12"}})
    assert counters(shown) == (3, {"life": 7, "git": 9, "run": 1001, "pr": 4, "session:a": 12})
    assert counters({"life": {"name": "alpha-one-t1", "branch": "alpha-one-t1.2"}}) == (2, {})
    assert counters({"life": {"name": "alpha-one", "branch": "main"}}) == (0, {})
    going = entry(7, 3, git={"insertions": 0})
    assert counters(going) == (3, {"life": 7})  # its files are being taken away


# ── a screen that is shown what it must not ──────────────────────────────────────────────────────


class Watched(Crowd):
    """A crowd of one, in this process, that keeps what it says."""

    def __init__(self, folder: Path) -> None:
        self.said: list[Any] = []
        clients = [["c", PROJECT, "token", ["beta-one"]]]
        super().__init__({"urls": [], "seed": 1, "history": str(folder / "crowd.jsonl"), "clients": clients})

    def say(self, **told: Any) -> None:
        self.said += [rule for rule, _ in [told["violation"]]] if "violation" in told else []


class Deaf:
    """A socket that nobody listens to."""

    async def send_json(self, message: Any) -> None:
        """Nothing comes of it."""


def snapshot(version: int, shown: dict[str, Any]) -> str:
    from pipeline.domain.patch import state_hash

    told = {"type": "snapshot", "id": 1, "epoch": EPOCH, "version": version, "reason": "initial", "complete": True}
    return json.dumps({**told, "hash": state_hash({NAME: shown}), "workspaces": {NAME: shown}})


async def _shown(folder: Path, *frames: str) -> list[str]:
    crowd = Watched(folder)
    for frame in frames:
        await crowd.screens[0]._take(Deaf(), frame)  # type: ignore[arg-type]
    crowd.out.close()
    assert len((folder / "crowd.jsonl").read_text().splitlines()) == len(frames)
    return crowd.said


async def test_a_screen_on_which_a_counter_shrinks_is_noticed(tmp_path: Path) -> None:
    assert await _shown(tmp_path, snapshot(1, entry(1)), snapshot(2, entry(2))) == []
    (tmp_path / "crowd.jsonl").unlink()
    assert await _shown(tmp_path, snapshot(1, entry(2)), snapshot(2, entry(1))) == ["order"]


async def test_a_screen_that_is_sent_another_tenant_s_name_is_noticed(tmp_path: Path) -> None:
    shown = entry(git={"branch": "beta-one-t0"})
    assert await _shown(tmp_path, snapshot(1, shown)) == ["foreign"]


# ── what is drawn and told ───────────────────────────────────────────────────────────────────────


def test_waves_follow_from_the_seed_and_keep_their_limits() -> None:
    drawn = [[draw_wave(draw, 9) for _ in range(300)] for draw in (random.Random(1), random.Random(1))]
    assert drawn[0] == drawn[1]
    for wave in drawn[0]:
        for part, most in AT_ONCE.items():
            assert sum(fault.part == part for fault in wave) <= most
        assert len(wave) == 1 or not any(fault.alone for fault in wave)
        targets = [fault.target for fault in wave if fault.target]
        assert len(set(targets)) == len(targets)
    assert {fault.name for wave in drawn[0] for fault in wave} == set(NAMES)
    assert all(len(draw_wave(random.Random(n), 1)) == 1 for n in range(50))
    only = tuple(fault for fault in FAULTS if fault.name == "kill gateway")
    assert {fault.name for fault in draw_wave(random.Random(2), 5, only)} == {"kill gateway"}


def test_the_load_and_the_screens_speak_of_the_truth_in_the_same_words(tmp_path: Path) -> None:
    load = Load(Judge(), tmp_path, 1)
    tree = load.trees[0]
    one = load.workspaces[PROJECT][0]
    one.incarnation, one.alive = 1, True
    one.fields = {group: load._fields(one, group) for group in ("life", "run", "session:a")}
    shown: dict[str, Any] = {
        one.name: {"life": one.fields["life"], "run": one.fields["run"], "sessions": {"a": one.fields["session:a"]}},
        "alpha-one-0": {"life": {"branch": "main"}},
    }
    for there in [there for there in load.trees if there.repository == tree.repository]:
        branch = f"{there.path.name}.{there.generation}"
        shown[there.id] = {"life": {"branch": branch}, "git": {"insertions": there.lines}}
    assert told(shown, PROJECT) == load.true(PROJECT)
    load._write(tree, 2)
    assert told(shown, PROJECT) != load.true(PROJECT)


async def test_a_fault_that_finds_nothing_to_break_says_so(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, environ={})
    settings.run_dir.mkdir(parents=True)
    load, taps = SimpleNamespace(trees=[]), SimpleNamespace(looks=[])
    stage = Stage(settings, load, taps, [], None, random.Random(1), None, set(), None)  # type: ignore[arg-type]
    parts = "process", "bus"
    quiet = [fault for fault in FAULTS if fault.part in parts and fault.name not in ("bus garbage", "kill supervisord")]
    with patch.object(inject, "LOOP_S", 0.2):
        for fault in quiet:
            assert await fault.do(stage) is False, fault.name


def test_percentiles_are_of_what_was_measured() -> None:
    assert [percentile([], 0.5), percentile([3.0, 1.0, 2.0], 0.5), percentile([3.0, 1.0, 2.0], 0.99)] == [0, 2, 3]


@pytest.mark.parametrize("wrong", [["--faults", "0"], ["--faults", "many"], ["--only", "sunshine"]])
def test_what_cannot_be_run_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
