"""The aggregator as a real process, seen through its sockets and through the operator's commands."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from benchmarks import deployment
from pipeline import bus, wire
from pipeline.domain.model import Census, Git, Life, Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings


@pytest.fixture
def settings() -> Iterator[Settings]:
    with deployment.home() as settings:
        yield settings


@pytest.fixture
def aggregator(settings: Settings) -> Iterator[psutil.Process]:
    with deployment.process("aggregator", settings) as running:
        deployment.until((settings.run_dir / "query.sock").exists, 20, "the aggregator's sockets")
        yield running


@pytest.fixture
def send(settings: Settings, aggregator: psutil.Process) -> Iterator[Callable[[object], None]]:
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 1000)
    socket.connect(bus.endpoint(settings.run_dir, "ingress"))
    yield lambda message: socket.send(wire.encode(message))
    socket.close()


def stamp() -> Stamp:
    now = now_ns()
    return Stamp(now, now, CLOCK)


def life(workspace: str) -> Look:
    return Look("web", workspace, "life", Life(name=workspace, phase="ready"), stamp(), "catalog", producer="census")


def git(workspace: str, insertions: int) -> Look:
    return Look("web", workspace, "git", Git(insertions=insertions), stamp(), "git", producer="worker-0")


def cli(settings: Settings, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *args, "--home", str(settings.home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def explained(settings: Settings, *args: str) -> dict[str, object]:
    done = cli(settings, "explain", *args, "--json")
    return json.loads(done.stdout) if done.returncode == 0 else {}


def test_a_second_aggregator_is_refused_and_the_first_goes_on(
    settings: Settings, send: Callable[[object], None]
) -> None:
    second = cli(settings, "run", "aggregator")
    assert second.returncode != 0
    assert "already runs" in second.stderr + second.stdout
    send(life("w1"))
    deployment.until(lambda: explained(settings, "w1"), 10, "the first one answers")


def test_explain_tells_the_winning_look_and_the_rejected_one_with_their_causes(
    settings: Settings, send: Callable[[object], None]
) -> None:
    early = stamp()
    send(life("w1"))
    send(git("w1", 7))
    send(Look("web", "w1", "git", Git(insertions=1), early, "git", producer="a late worker"))
    deployment.until(lambda: len(explained(settings, "w1").get("rulings", {}).get("git", [])) == 2, 10, "both looks")  # type: ignore[attr-defined]
    told = cli(settings, "explain", "w1", "git").stdout
    assert "insertions=7" in told.splitlines()[2]
    assert "applied: first look at this group" in told
    assert "older: ended before the current look began" in told
    assert "a late worker" in told


def test_explain_of_what_is_not_there_says_what_to_do(settings: Settings, aggregator: psutil.Process) -> None:
    done = cli(settings, "explain", "nobody")
    assert done.returncode == 1
    assert "treewire workspace list" in done.stderr


def test_explain_of_a_group_that_nobody_looked_at_names_those_that_were(
    settings: Settings, send: Callable[[object], None]
) -> None:
    send(life("w1"))
    deployment.until(lambda: explained(settings, "w1"), 10, "the look")
    assert "there are looks at: life" in cli(settings, "explain", "w1", "git").stderr
    assert "follows from" in cli(settings, "explain", "w1", "status").stderr


def test_explain_tells_why_a_workspace_left(settings: Settings, send: Callable[[object], None]) -> None:
    send(life("w1"))
    send(life("w2"))
    send(git("w1", 5))
    send(Census(stamp(), "catalog", "", ["web"], [life("w2")]))
    deployment.until(lambda: explained(settings, "w1").get("state") == {}, 10, "w1 is buried")
    told = cli(settings, "explain", "w1").stdout
    assert "buried: a complete census did not find the workspace" in told
    assert "insertions=5" in told


def test_explain_without_an_aggregator_says_so(settings: Settings) -> None:
    settings.run_dir.mkdir(mode=0o700, parents=True)
    done = cli(settings, "explain", "w1")
    assert done.returncode == 3
    assert "treewire up" in done.stderr


def test_a_recording_rebuilds_the_state_and_proves_every_hash(
    settings: Settings, send: Callable[[object], None], tmp_path: Path
) -> None:
    send(Census(stamp(), "catalog", "catalog:test", ["web"], [life("w1"), life("w2")]))
    file = tmp_path / "flow.jsonl"
    command = [sys.executable, "-m", "pipeline.cli", "tap", "--record", str(file), "--home", str(settings.home)]
    tap = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        deployment.until(lambda: file.exists() and b'"image"' in file.read_bytes(), 15, "an image in the recording")
        for n in range(40):
            send(git("w1", n))
            send(Look("web", "w2", f"session:s{n % 3}", Session(state="working", name=str(n)), stamp(), "live"))
        send(Look("web", "w2", "session:s1", None, stamp(), "live"))
        at = len(file.read_bytes())
        deployment.until(lambda: file.read_bytes()[at:].count(b'"heartbeat"') >= 2, 15, "hashes in the recording")
    finally:
        tap.send_signal(signal.SIGINT)
        shown, _ = tap.communicate(timeout=15)
    assert "w1 git applied" in shown
    assert "delta" in shown
    done = cli(settings, "replay", str(file), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["deltas"] >= 1
    assert result["looks"] >= 80
    assert result["hashes_checked"] >= 3
    assert result["mismatches"] == []
    lines = file.read_bytes().splitlines()
    forged = tmp_path / "forged.jsonl"
    forged.write_bytes(b"\n".join(line.replace(b'"insertions":39', b'"insertions":38') for line in lines) + b"\n")
    assert cli(settings, "replay", str(forged)).returncode == 1
    version = result["projects"]["web"]["version"]
    rebuilt = json.loads(cli(settings, "replay", str(file), "--at", f"web:{version}").stdout)
    assert rebuilt["state"]["w1"]["git"]["insertions"] == 39
    assert set(rebuilt["state"]["w2"]["sessions"]) == {"s0", "s2"}
    assert cli(settings, "replay", str(file), "--at", "web:0").returncode == 1


def test_a_tap_shows_only_what_was_asked_for(settings: Settings, send: Callable[[object], None]) -> None:
    send(life("w1"))
    command = [sys.executable, "-m", "pipeline.cli", "tap", "--json", "--kind", "verdict", "--group", "git"]
    tap = subprocess.Popen([*command, "--home", str(settings.home)], stdout=subprocess.PIPE, text=True)
    assert tap.stdout is not None
    try:
        line, n = "", 0
        deadline = time.monotonic() + 15
        while not line and time.monotonic() < deadline:
            n += 1
            send(life("w2"))
            send(git("w1", n))
            time.sleep(0.05)
            if select.select([tap.stdout], [], [], 0)[0]:
                line = tap.stdout.readline()
        told = json.loads(line)
        assert (told["type"], told["look"]["group"], told["verdict"]) == ("ruled", "git", "applied")
    finally:
        tap.terminate()
        tap.communicate(timeout=15)


def test_a_tap_on_a_deployment_that_has_ended_says_so_instead_of_waiting(settings: Settings) -> None:
    with deployment.process("aggregator", settings):
        deployment.until((settings.run_dir / "tap.sock").exists, 20, "the aggregator's sockets")
    done = cli(settings, "tap")
    assert done.returncode == 3
    assert "treewire up" in done.stderr


def test_a_file_that_is_no_recording_is_named_with_its_line(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a recording\n")
    done = cli(settings, "replay", str(file))
    assert done.returncode == 1
    assert "line 1" in done.stderr


def test_on_term_it_ends_well_and_leaves_no_beat_alive(settings: Settings, aggregator: psutil.Process) -> None:
    aggregator.terminate()
    assert aggregator.wait(10) == 0
