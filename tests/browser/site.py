"""A site for a browser: a real aggregator and gateway, and the sources that a test plays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zmq

from pipeline import bus, wire
from pipeline.domain.model import Census, Ci, Git, Life, Look, Pr, Ratchet, Run, Session, Stamp, Value
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings

WAIT_MS: Final = 20_000
HEARTBEAT_MS: Final = 300
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
SOURCES: Final = {"git": "git", "pr": "catalog", "ci": "catalog", "ratchet": "catalog"}  # who may report it

Groups = dict[str, tuple[Value, int]]  # group → value, and how many milliseconds ago it became so


class Site:
    """The two processes, and the sources that the test plays."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings.load(home, environ={})
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.lives: dict[tuple[str, str], Life] = {}
        self.projects = ["web"]
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(bus.endpoint(self.settings.run_dir, "ingress"))

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", name, "--home", str(self.home)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("TREEWIRE_")}
        with (self.home / f"{name}.out").open("ab") as out:
            self.children[name] = subprocess.Popen(command, stdout=out, stderr=out, env=env)

    def kill(self, name: str) -> None:
        """As the kernel would: no goodbye to anybody."""
        self.children[name].kill()
        self.children[name].wait()

    def hold(self, name: str) -> None:
        """It stands still, and everybody's connection to it stays."""
        self.children[name].send_signal(signal.SIGSTOP)

    def let_go(self, name: str) -> None:
        self.children[name].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()
        self._socket.close()

    @property
    def url(self) -> str:
        return self.settings.url_path.read_text().strip()

    @property
    def token(self) -> str:
        return self.settings.token_path.read_text().strip()

    @property
    def link(self) -> str:
        """What signs a browser in."""
        return f"{self.url}#token={self.token}"

    def look(
        self,
        workspace: str,
        group: str,
        value: Value,
        ago_ms: int = 0,
        *,
        project: str = "web",
        producer: str = "claude-hooks",
        began_ms_ago: int | None = None,
    ) -> None:
        now = now_ns()
        began = now if began_ms_ago is None else now - began_ms_ago * 1_000_000
        stamp = Stamp(began, began if began_ms_ago is not None else now, CLOCK)
        source = SOURCES.get(group, "live")
        by = producer if source == "live" else source
        at_ms = int(time.time() * 1000) - ago_ms
        self._send(Look(project, workspace, group, value, stamp, source, producer=by, at_ms=at_ms))

    def put(self, workspace: str, life: Life, groups: Groups | None = None, project: str = "web") -> None:
        """A workspace, from now on in each census, and looks at its groups."""
        self.lives[project, workspace] = life
        self.census()
        for group, (value, ago_ms) in (groups or {}).items():
            self.look(workspace, group, value, ago_ms, project=project)

    def census(self) -> None:
        now = now_ns()
        stamp = Stamp(now, now, CLOCK)
        at_ms = int(time.time() * 1000) - 26 * HOUR
        looks = [
            Look(project, name, "life", life, stamp, "catalog", producer="census", at_ms=at_ms)
            for (project, name), life in self.lives.items()
        ]
        self._send(Census(stamp, "catalog", "catalog:test", [*self.projects], looks))

    def _send(self, message: Look | Census) -> None:
        self._socket.send(wire.encode(message))


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """An aggregator and a gateway that are ready, in a home of their own that is gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    (home / "treewire.toml").write_text(f"[gateway]\nport = 0\nheartbeat_ms = {HEARTBEAT_MS}\n")
    one = Site(home)
    one.start("aggregator")
    one.start("gateway")
    try:
        until(one.settings.url_path.exists, "the gateway's address", one)
        until((one.settings.run_dir / "query.sock").exists, "the aggregator's sockets", one)
        yield one
    finally:
        one.stop()
        shutil.rmtree(home, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, site: Site | None = None, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            said = "" if site is None else "".join(file.read_text() for file in site.home.glob("*.out"))
            raise AssertionError(f"{what}: not within {seconds:g} s\n{said}")
        time.sleep(0.02)


def ready(name: str, branch: str) -> Life:
    return Life(name=name, phase="ready", branch=branch, base="main")


def worked(files: int, insertions: int, deletions: int, ahead: int, behind: int, **more: Any) -> Git:
    return Git(files=files, insertions=insertions, deletions=deletions, ahead=ahead, behind=behind, **more)


def a_day_of_work(site: Site) -> None:
    """Two projects on an ordinary afternoon, with nearly everything that a card can show."""
    site.projects = ["web", "ingest"]
    opus, sonnet, codex, gemini = (
        ("claude", "opus-4.1"),
        ("claude", "sonnet-4.5"),
        ("codex", "gpt-5-codex"),
        ("gemini", "2.5-pro"),
    )

    def agent(who: tuple[str, str], state: Any, waiting_for: Any = None, crashed: bool | None = None) -> Session:
        return Session(provider=who[0], model=who[1], state=state, waiting_for=waiting_for, crashed=crashed)

    def pull(number: int, state: Any = "open", **more: Any) -> Pr:
        return Pr(number=number, url=f"https://example.com/pull/{number}", state=state, **more)

    passed = Ci(state="success", passed=18)
    day: list[tuple[str, str, str, Groups]] = [
        ("web", "checkout-redesign", "feature/checkout-redesign", {
            "git": (worked(23, 1284, 412, 9, 0), 40 * SECOND),
            "session:s1": (agent(opus, "working"), 6 * MINUTE),
            "session:s2": (agent(sonnet, "working"), 95 * SECOND),
            "run": (Run(state="running", port=5173), 2 * HOUR),
        }),
        ("web", "fix-login-redirect", "fix/login-redirect", {
            "git": (worked(3, 48, 12, 2, 1), 3 * MINUTE),
            "session:s1": (agent(opus, "waiting", "permission"), 4 * MINUTE),
        }),
        ("web", "dark-mode", "feature/dark-mode", {
            "git": (worked(17, 640, 208, 5, 3), 20 * MINUTE),
            "session:s1": (agent(codex, "waiting", "plan"), 18 * MINUTE),
        }),
        ("web", "upgrade-router", "chore/upgrade-router", {
            "git": (worked(41, 902, 871, 12, 6, operation="rebase", conflicted=2), 70 * SECOND),
            "session:s1": (agent(sonnet, "working"), 2 * MINUTE),
        }),
        ("web", "search-autocomplete", "feature/search-autocomplete", {
            "pr": (pull(482, review="changes_requested"), 50 * MINUTE),
            "ci": (Ci(state="failure", passed=15, failed=3), 31 * MINUTE),
            "git": (worked(12, 377, 54, 6, 2), HOUR),
            "session:s1": (agent(opus, "idle"), 52 * MINUTE),
        }),
        ("web", "invoice-pdf", "feature/invoice-pdf", {
            "pr": (pull(479, review="approved", mergeable="mergeable"), 3 * HOUR),
            "ci": (passed, 2 * HOUR),
            "git": (worked(8, 310, 22, 3, 0), 3 * HOUR),
            "session:s1": (agent(gemini, "exited"), 3 * HOUR),
        }),
        ("web", "rate-limits", "feature/rate-limits", {
            "pr": (pull(485), 12 * MINUTE),
            "ci": (Ci(state="pending", passed=9, pending=9), 5 * MINUTE),
            "git": (worked(6, 144, 9, 2, 0), 14 * MINUTE),
            "session:s1": (agent(codex, "idle"), 12 * MINUTE),
        }),
        ("web", "email-templates", "feature/email-templates", {
            "git": (worked(0, 0, 0, 0, 4), 5 * HOUR),
            "session:s1": (agent(opus, "idle"), 5 * HOUR),
        }),
        ("web", "a11y-audit", "chore/a11y-audit", {
            "pr": (pull(471, "merged"), 26 * MINUTE),
            "ci": (passed, HOUR),
            "git": (worked(19, 268, 240, 0, 0), 28 * MINUTE),
        }),
        ("ingest", "parquet-writer", "feature/parquet-writer", {
            "git": (worked(9, 530, 61, 4, 0), 15 * SECOND),
            "session:s1": (agent(opus, "working"), 22 * SECOND),
        }),
        ("ingest", "backfill-2024", "ops/backfill-2024", {
            "git": (worked(2, 87, 3, 1, 0), 9 * MINUTE),
            "session:s1": (agent(sonnet, "exited", crashed=True), 7 * MINUTE),
        }),
        ("ingest", "schema-registry", "feature/schema-registry", {
            "pr": (pull(97, mergeable="conflicting"), 40 * MINUTE),
            "ci": (passed, 41 * MINUTE),
            "ratchet": (Ratchet(enabled=True, state="merge_conflict"), 8 * MINUTE),
            "git": (worked(27, 741, 388, 11, 8), 8 * MINUTE),
            "session:s1": (agent(gemini, "idle"), 30 * MINUTE),
        }),
        ("ingest", "metrics-labels", "fix/metrics-labels", {
            "git": (worked(4, 36, 31, 1, 0), 2 * MINUTE),
            "session:s1": (agent(codex, "waiting", "question"), 55 * SECOND),
        }),
        ("ingest", "retire-v1", "chore/retire-v1", {
            "pr": (pull(91, "closed"), 6 * HOUR),
            "git": (worked(33, 12, 2904, 3, 14), 6 * HOUR),
        }),
    ]  # fmt: skip
    for project, name, branch, _ in day:
        site.lives[project, name] = ready(name, branch)
    site.census()
    for project, name, _, groups in day:
        for group, (value, ago_ms) in groups.items():
            site.look(name, group, value, ago_ms, project=project)
