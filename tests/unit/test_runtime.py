"""The frame around a process: its beat, its signals, its end, its log and its metrics. Each runs for real."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from pipeline.runtime import metrics
from pipeline.runtime.beat import BeatFile, read_beat, read_beats
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.log import setup
from pipeline.runtime.place import OperatorError

PROGRAM = """
import asyncio, sys, threading, time
from pathlib import Path
from pipeline.runtime.place import OperatorError
from pipeline.runtime.process import run
from pipeline.runtime.settings import Settings

async def good(process):
    from prometheus_client import Counter
    Counter("looks", "Looks.", registry=process.registry).inc(3)
    process.figures["queue"] = 0
    process.before_beat = lambda: process.figures.update(queue=process.figures["queue"] + 1)
    await process.stopping.wait()

async def task_fails(process):
    async def work():
        raise ValueError("the story")
    process.spawn(work(), "work")
    await process.stopping.wait()

async def fails(process):
    raise ValueError("the story")

async def operators_fault(process):
    raise OperatorError("the database is gone; bring it back")

async def never_drains(process):
    await asyncio.Event().wait()

async def hangs(process):
    await process.stopping.wait()
    time.sleep(60)

async def leaves_a_task(process):
    begun = asyncio.Event()
    async def work():
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            print("cancelled", flush=True)
    process.spawn(work(), "work")
    await begun.wait()

async def leaves_a_deaf_task(process):
    begun = asyncio.Event()
    async def work():
        for word in ("begun", "went on", "cancelled"):
            try:
                begun.set()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                print(word, flush=True)
    process.spawn(work(), "work")
    await begun.wait()

def plain(process):
    process.figures["plain"] = 1
    while not process.stopping.wait(0.05):
        pass

def plain_fails(process):
    raise ValueError("the story")

def plain_hangs(process):
    time.sleep(60)

overrides = {"supervisor.drain_s": 0.5}
run(sys.argv[2], globals()[sys.argv[1]], Settings.load(Path(sys.argv[3]), overrides))
"""


class Running:
    """One process of the program above, and the directory it beats in."""

    def __init__(self, home: Path, main: str, name: str = "x", **env: str) -> None:
        self.run_dir = home / "run"
        self.name = name
        self.child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, main, name, str(home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_RUNTIME_DIR": str(home), **env},
        )

    @property
    def beat(self) -> Any:
        return read_beat(self.run_dir / f"{self.name}.beat")

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while not (met := condition()):
            assert self.child.poll() is None, self.child.communicate()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)
        return met

    def runs(self) -> Running:
        self.until(lambda: (beat := self.beat) and beat.pid == self.child.pid and beat.state == "running")
        return self

    def end(self, *signals: signal.Signals) -> tuple[int, str]:
        """Exit code and log."""
        for signum in signals:
            self.child.send_signal(signum)
            time.sleep(0.1)  # two signals at once are one
        out, err = self.child.communicate(timeout=20)
        return self.child.returncode, out + err


@pytest.fixture
def home() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
    yield path / "h"
    shutil.rmtree(path)


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(main: str, name: str = "x", **env: str) -> Running:
        started.append(Running(home, main, name, **env))
        return started[-1]

    yield start
    for running in started:
        running.child.kill()
        running.child.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("main", ["good", "plain"])
def test_a_signal_lets_main_return_and_the_beat_says_stopped(
    start: Callable[..., Running], main: str, signum: signal.Signals
) -> None:
    running = start(main).runs()
    code, log = running.end(signum)
    assert (code, running.beat.state) == (0, "stopped"), log
    assert '"event":"stopped"' in log


def test_the_beat_goes_on_and_carries_figures_refreshed_before_each(start: Callable[..., Running], home: Path) -> None:
    running = start("good").runs()
    first = running.beat.boot_ns
    beat = running.until(lambda: (beat := running.beat).figures.get("queue", 0) >= 2 and beat)
    assert beat.boot_ns > first
    assert beat.rss > 1 << 20
    assert beat.fds > 2
    assert beat.alive()
    assert beat.age_s() < 15
    for path in (home, running.run_dir):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (running.run_dir / "x.beat").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("main", ["fails", "plain_fails", "task_fails"])
def test_an_exception_that_is_our_fault_is_told_with_its_story_and_ends_the_process(
    start: Callable[..., Running], main: str
) -> None:
    code, log = start(main).end()
    assert code == 1
    assert "ValueError: the story" in log
    assert "Traceback" in log


def test_what_the_operator_must_mend_is_told_without_a_traceback(start: Callable[..., Running]) -> None:
    code, log = start("operators_fault").end()
    assert code == 1
    assert "the database is gone; bring it back" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("main", ["never_drains", "hangs", "plain_hangs"])
def test_a_main_that_does_not_drain_is_ended_in_time(start: Callable[..., Running], main: str) -> None:
    code, log = start(main).runs().end(signal.SIGTERM)
    assert code == 1
    assert "in time" in log


def test_a_second_signal_ends_at_once(start: Callable[..., Running]) -> None:
    code, log = start("never_drains").runs().end(signal.SIGTERM, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "second signal" in log


def test_tasks_are_cancelled_when_main_returns(start: Callable[..., Running]) -> None:
    code, log = start("leaves_a_task").end()
    assert (code, "cancelled" in log) == (0, True)


def test_a_task_that_takes_its_cancellation_for_something_else_is_told_again(start: Callable[..., Running]) -> None:
    code, log = start("leaves_a_deaf_task").end()
    assert (code, "cancelled" in log, "in time" in log) == (0, True, False)


def test_a_name_runs_once_per_home_and_the_second_says_who_has_it(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    first = BeatFile(home / "run", "aggregator")
    first.write()
    with pytest.raises(OperatorError, match=rf"aggregator already runs .*{os.getpid()}"):
        BeatFile(home / "run", "aggregator", patience_s=0)
    first.close()
    BeatFile(home / "run", "aggregator", patience_s=0).close()


def test_a_child_of_a_supervisord_that_is_gone_does_not_start(start: Callable[..., Running]) -> None:
    orphan = start("good", SUPERVISOR_ENABLED="1", TREEWIRE_SUPERVISOR_PID="1")
    assert orphan.end()[0] == 1
    assert start("good", SUPERVISOR_ENABLED="1", TREEWIRE_SUPERVISOR_PID=str(os.getpid())).runs()


def test_a_shorter_beat_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    file = BeatFile(tmp_path, "x")
    file.beat.figures = {"long": "x" * 500}
    file.write()
    file.beat.figures = {}
    file.write()
    assert json.loads(file.path.read_bytes())["figures"] == {}
    file.close()


def test_beats_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "torn.beat").write_text('{"name":"to')
    (tmp_path / "foreign.beat").write_text("[]")
    file = BeatFile(tmp_path, "good")
    file.write()
    assert [beat.name for beat in read_beats(tmp_path)] == ["good"]
    assert read_beats(tmp_path / "nowhere") == []
    file.close()


def test_a_beat_is_alive_while_it_is_fresh_and_its_writer_exists(tmp_path: Path) -> None:
    file = BeatFile(tmp_path, "x")
    beat = file.beat
    assert beat.alive()
    assert not beat.alive(now=beat.boot_ns + 3600 * 10**9)
    assert not beat.alive(now=beat.boot_ns - 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    beat.pid = dead.pid
    assert not beat.alive()
    file.close()


def test_the_clock_advances_and_names_its_domain() -> None:
    first = now_ns()
    assert now_ns() >= first
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() in CLOCK
    assert abs(wall_ms() / 1000 - time.time()) < 60


# ── log ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("root_logger")
def test_off_a_terminal_a_line_is_json_and_on_one_it_is_key_value() -> None:
    out = io.StringIO()
    setup("x", stream=out).info("two words", n=3, path=Path("/p"))
    line = json.loads(out.getvalue())
    assert (line["process"], line["event"], line["n"], line["level"]) == ("x", "two words", 3, "info")
    out = io.StringIO()
    setup("x", style="text", stream=out).info("two words", n=3)
    assert out.getvalue().partition(" ")[2] == 'level=info process=x event="two words" n=3\n'


@pytest.mark.usefixtures("root_logger")
def test_an_exception_on_a_terminal_keeps_its_lines() -> None:
    out = io.StringIO()
    log = setup("x", style="text", stream=out)
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("failed")
    assert out.getvalue().endswith("ValueError: why\n")
    assert len(out.getvalue().splitlines()) > 3


@pytest.mark.usefixtures("root_logger")
def test_lines_below_the_level_are_dropped_and_libraries_log_to_the_same_place() -> None:
    out = io.StringIO()
    log = setup("x", level="warning", stream=out)
    log.info("unheard")
    logging.getLogger("library").warning("from %s", "within")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["from within"]


@pytest.mark.usefixtures("root_logger")
def test_what_cannot_be_logged_is_lost_and_stops_nobody() -> None:
    """The row of the full disk: logs give way first."""
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    log = setup("x", stream=full)
    for n in range(3):
        log.warning("nobody will read this", n=n)
    logging.getLogger("library").warning("nor this")
    with pytest.raises(OSError, match="No space"):
        full.close()


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────


def test_metrics_of_all_living_processes_are_merged_and_dead_ones_flagged(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b", "dead"):
        registry = CollectorRegistry()
        Counter("looks", "Looks.", ["verdict"], registry=registry).labels("applied").inc(3)
        Histogram("took", "Took.", registry=registry).observe(0.2)
        metrics.write(registry, tmp_path, name)
        file = BeatFile(tmp_path, name)
        file.beat.figures = {"queue-length": 4, "where": "text is no metric"}
        file.measure()
        file.write()
        files.append(file)
    files[2].close()
    text = metrics.merged(tmp_path).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE looks_total counter") == 1
    assert {s.labels["process"]: s.value for s in families["treewire_process_up"].samples} == {
        "a": 1,
        "b": 1,
        "dead": 0,
    }
    totals = [s for s in families["looks"].samples if s.name == "looks_total"]
    assert [(s.labels, s.value) for s in totals] == [
        ({"process": "a", "verdict": "applied"}, 3),
        ({"process": "b", "verdict": "applied"}, 3),
    ]
    assert {s.labels["process"] for s in families["took"].samples} == {"a", "b"}
    assert [s.value for s in families["treewire_figure_queue_length"].samples] == [4, 4]
    assert all(s.value > 1 << 20 for s in families["treewire_process_resident_bytes"].samples)
    assert "no metric" not in text
    for file in files[:2]:
        file.close()


def test_a_process_writes_its_registry_and_takes_it_back_when_it_ends(start: Callable[..., Running]) -> None:
    running = start("good").runs()
    running.until(lambda: b'looks_total{process="x"} 3.0' in metrics.merged(running.run_dir))
    assert running.end(signal.SIGTERM)[0] == 0
    assert metrics.merged(running.run_dir).decode().splitlines()[-1] == 'treewire_process_up{process="x"} 0'
