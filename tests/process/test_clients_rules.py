"""The rules that both clients keep, without a server: the golden frames in Python, and all that Node tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gateway.copy import MINUTE, SECOND, Answer, Copy
from pipeline.domain.patch import state_hash
from pipeline.domain.status import TABLE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "clients" / "js"
GOLDEN = json.loads((ROOT / "tests" / "golden" / "frames.json").read_text())
VIEWS = {"connecting": "loading", "stale": "live"}  # whether somebody is there is not what the file is about
WELCOME = {
    "type": "welcome",
    "protocol": 1,
    "epoch": "e1",
    "heartbeat_ms": 10_000,
    "limits": {"subscriptions": 32, "frame_bytes": 65536},
}
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (PACKAGE / "node_modules").is_dir(),
    reason="no node on this host, or its packages are missing: make test",
)


@pytest.mark.parametrize("sequence", GOLDEN["sequences"], ids=lambda sequence: sequence["about"])
def test_the_python_client_makes_of_every_golden_frame_what_the_file_says(sequence: dict[str, Any]) -> None:
    """W3, W7. The JavaScript client replays the same file, in clients/js/test/golden.test.js."""
    copy = Copy("web")
    for number, step in enumerate(sequence["steps"]):
        said: list[dict[str, Any]] = []
        if step["do"] == "lose":
            copy.lose()
        else:
            if step["do"] == "connect":
                said.append({"type": "hello"})
            answer = copy.take(step.get("text") or json.dumps(step["frame"]), number)
            for one in answer.says:
                for mark in one.get("subscriptions", {}).values():
                    assert mark["hash"] == state_hash(copy.workspaces or {})
                said.append({"type": "ack", "n": one["n"]} if one["type"] == "ack" else one)
        assert sorted(said, key=str) == sorted(step["says"], key=str), (number, step)
        holds = copy.workspaces is not None
        assert {
            "view": VIEWS.get(copy.state, copy.state),
            "epoch": copy.cursor.get("epoch"),
            "version": copy.cursor.get("version"),
            "complete": copy.complete if holds else None,
            "hash": copy.hash() if holds else None,
            "workspaces": copy.workspaces,
        } == step["then"], (number, step)


# ── what the golden frames do not tell, as it takes time ─────────────────────────────────────────


class Told:
    """A copy that has a snapshot, and a clock."""

    def __init__(self) -> None:
        self.copy = Copy("web")
        self.now = 0
        self.take(WELCOME)
        self.snapshot()

    def take(self, frame: Any) -> Answer:
        return self.copy.take(json.dumps(frame), self.now)

    def snapshot(self, **more: Any) -> Answer:
        workspaces = {"w1": {"life": {"name": "one"}}}
        frame = {"type": "snapshot", "id": 1, "epoch": "e1", "version": 1, "hash": state_hash(workspaces)}
        return self.take({**frame, "reason": "initial", "complete": True, "workspaces": workspaces, **more})

    def heartbeat(self, n: int, **mark: Any) -> Answer:
        subscriptions = {"1": {"version": 1, "hash": state_hash(self.copy.workspaces or {}), **mark}}
        return self.take({"type": "heartbeat", "n": n, "subscriptions": subscriptions, "health": {}})


def test_a_state_that_is_wrong_each_time_is_not_asked_for_at_the_speed_of_the_line() -> None:
    told = Told()
    answers = [told.snapshot(hash="0" * 16) for _ in range(4)]
    assert [bool(answer.says) for answer in answers] == [True, True, True, False]
    assert answers[3].later == {"type": "resync", "id": 1, "reason": "hash"}
    assert told.copy.state == "degraded"
    assert told.heartbeat(1, version=9).says[1:] == ()  # it is on its way already
    told.now += MINUTE
    assert told.snapshot().later is None
    assert told.copy.state == "live"
    assert not told.copy.waits
    assert told.heartbeat(2, version=9).says[1:] == ({"type": "resync", "id": 1, "reason": "gap", "version": 1},)


def test_what_is_older_than_what_is_held_takes_nobody_back() -> None:
    told = Told()
    for start, files in ((1, 3), (2, 4)):
        patch = {"w1": {"git": {"files": files}}}
        told.take({"type": "delta", "id": 1, "epoch": "e1", "from": start, "to": start + 1, "patch": patch})
    before = told.copy.workspaces
    old = {"type": "delta", "id": 1, "epoch": "e1", "from": 1, "to": 2, "patch": {"w1": {"git": {"files": 3}}}}
    assert told.take(old) == Answer()
    assert (told.copy.workspaces, told.copy.version) == (before, 3)


def test_a_resync_that_is_never_answered_is_repeated_by_the_second_heartbeat_after_it() -> None:
    told = Told()
    said = [told.heartbeat(n, version=2).says[1:] for n in range(1, 4)]
    assert [[one["type"] for one in says] for says in said] == [["resync"], [], ["resync"]]


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "delta", "id": 1, "epoch": "e1", "from": 1, "to": 2, "patch": {"w1": 7}},
        {"type": "delta", "id": 1, "epoch": "e1", "from": "1", "to": 2, "patch": {}},
        {"type": "snapshot", "id": 1, "epoch": "e1", "version": 2, "workspaces": []},
        {
            "type": "snapshot",
            "id": 1,
            "epoch": "e1",
            "version": 2,
            "hash": "",
            "reason": "",
            "complete": True,
            "workspaces": {"w1": []},
        },
        {"type": "snapshot", "id": 1, "epoch": "e1", "version": -2, "hash": "", "workspaces": {}},
    ],
)
def test_a_malformed_frame_is_counted_and_answered_with_a_resync(frame: dict[str, Any]) -> None:
    """W7."""
    told = Told()
    before = told.copy.workspaces
    answer = told.take(frame)
    assert answer.says == ({"type": "resync", "id": 1, "reason": "gap", "version": 1},)
    assert (told.copy.malformed, told.copy.workspaces) == (1, before)


def test_a_frame_nested_beyond_all_measure_ends_nothing() -> None:
    """W7."""
    told = Told()
    deep = (
        '{"type":"delta","id":1,"epoch":"e1","from":1,"to":2,"patch":{"w1":' + '{"a":' * 100_000 + "1" + "}" * 100_002
    )
    told.copy.take(deep, told.now)
    assert told.copy.malformed == 1
    assert told.heartbeat(1).says[0]["type"] == "ack"


def test_who_has_not_been_answered_on_this_connection_shows_its_state_as_stale() -> None:
    told = Told()
    assert told.copy.lose().kind == "status"
    assert told.copy.state == "stale"
    assert told.take(WELCOME).says[0]["version"] == 1
    assert told.copy.state == "stale"
    told.take({"type": "delta", "id": 1, "epoch": "e1", "from": 1, "to": 1, "patch": {}})
    assert told.copy.state == "live"
    told.take({"type": "heartbeat", "n": 1, "subscriptions": {}, "health": {"aggregator": "stale"}})
    assert told.copy.state == "stale"


def test_after_a_sleep_one_missed_heartbeat_is_enough() -> None:
    told = Told()
    assert told.copy.patience(missed=False) == 25 * SECOND
    assert told.copy.patience(missed=True) == 15 * SECOND


# ── JavaScript ───────────────────────────────────────────────────────────────────────────────────


def npm(*args: str, cwd: Path = PACKAGE) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NO_COLOR": "1", "npm_config_offline": "true", "npm_config_update_notifier": "false"}
    return subprocess.run(["npm", *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=100)


@needs_node
def test_what_node_tests_of_the_javascript_client_holds() -> None:
    done = npm("test", "--silent")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "# pass 0\n" not in done.stdout


@needs_node
def test_the_javascript_client_keeps_its_types_and_they_are_the_published_ones(tmp_path: Path) -> None:
    """Strictly checked, and `npm run types` has been run since the last change."""
    done = npm("run", "--silent", "types", "--", "--outDir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in (PACKAGE / "types").iterdir()}


@needs_node
def test_the_package_holds_the_very_file_that_the_gateway_serves(tmp_path: Path) -> None:
    done = npm("pack", "--silent", "--pack-destination", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as packed:
        names = {name.removeprefix("package/") for name in packed.getnames()}
        served = packed.extractfile("package/client.js")
        assert served is not None
        assert served.read() == (ROOT / "gateway" / "web" / "client.js").read_bytes()
    code = {"client.js", "react.js", "query.js", "types/client.d.ts", "types/react.d.ts", "types/query.d.ts"}
    assert names == code | {"package.json", "README.md", "LICENSE"}


@needs_node
def test_both_clients_know_the_same_codes() -> None:
    script = """
        import { statusOf } from './client.js';
        console.log(JSON.stringify(process.argv.slice(1).map((code) => statusOf({ status: { code } }).code)));
    """
    command = ["node", "--input-type=module", "-e", script, "frobnicating", *TABLE]
    npm("run", "--silent", "prepare")
    done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["unknown", *TABLE]


def test_the_packages_of_the_javascript_client_are_locked_without_naming_where_they_come_from() -> None:
    locked = json.loads((PACKAGE / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package for name, package in locked.items() if name)
    assert not any("resolved" in package for package in locked.values())
