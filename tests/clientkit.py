"""What the tests of the clients share: an aggregator and a gateway as real processes, a line that breaks, followers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import bus, wire
from pipeline.domain.model import Census, Git, Life, Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings

ROOT = Path(__file__).parents[1]
JS = ROOT / "clients" / "js"
WAIT_S = 30.0
PROJECT = "web"


def until(condition: Callable[[], Any], what: Callable[[], str] | str, seconds: float = WAIT_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what if isinstance(what, str) else what()}"
        time.sleep(0.02)
    return found


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")}
    return {**kept, "XDG_CONFIG_HOME": "/nonexistent", "PYTHONUNBUFFERED": "1"}


class Line:
    """A TCP proxy. `cut` resets what goes through it; `shaky` does so by itself, after so many bytes at random."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target = 0
        self.cuts = 0
        self.shaky: random.Random | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.close()
        self.cut()

    def cut(self) -> None:
        for pair in [*self._pairs]:
            self._reset(pair)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._pairs.add((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(*ends, (near, far)), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket]) -> None:
        left = self.shaky.randrange(200, 8000) if self.shaky else None
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if left is not None and (left := left - len(data)) < 0:
                    sink.sendall(data[:left])  # in the middle of a frame
                    break
                sink.sendall(data)
        self._reset(pair)

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        if pair not in self._pairs:
            return
        self._pairs.discard(pair)
        self.cuts += 1
        for end in pair:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class World:
    """An aggregator, a gateway, and a test that plays every source. `line` is a way to the gateway that can break."""

    def __init__(self, home: Path, origins: tuple[str, ...] = ()) -> None:
        self.home, self.line = home, Line()
        (home / "treewire.toml").write_text(
            f"[gateway]\nport = 0\nheartbeat_ms = 300\nallowed_hosts = ['127.0.0.1:{self.line.port}']\n"
            f"allowed_origins = {json.dumps(origins)}\n"
        )
        self.settings = Settings.load(home, environ=environment())
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.ingress = bus.Ingress(self.settings.run_dir)
        self.lives: set[str] = set()
        self.insertions = 0
        for name in ("aggregator", "gateway"):
            self.start(name)
        self.address()

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", name, "--home", str(self.home)]
        with (self.home / f"{name}.out").open("ab") as out:
            self.children[name] = subprocess.Popen(command, stdout=out, stderr=out, env=environment())

    def kill(self, name: str) -> None:
        self.children[name].kill()
        self.children[name].wait(10)

    def stop(self) -> None:
        self.line.close()
        self.ingress.close()
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
            child.wait()

    def address(self) -> str:
        """The gateway's own, once it listens."""
        until(self.settings.url_path.exists, lambda: f"the gateway's address\n{self.said()}")
        url = self.settings.url_path.read_text().strip()
        self.line.target = int(url.rstrip("/").rpartition(":")[2])
        return url

    def said(self) -> str:
        return "\n".join(path.read_text() for path in self.home.glob("*.out"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.line.port}/"

    @property
    def token(self) -> str:
        return until(
            lambda: self.settings.token_path.exists() and self.settings.token_path.read_text().strip(), "token"
        )

    # ── as sources ──

    def send(self, message: wire.Ingress) -> None:
        until(lambda: self.ingress.send(message), "room in the ingress")

    def _look(self, workspace: str, group: str, value: Any, source: str) -> Look:
        now = now_ns()
        return Look(PROJECT, workspace, group, value, Stamp(now, now, CLOCK), source, producer="test")

    def census(self, *workspaces: str) -> None:
        """These are all; without any, those of the last time."""
        self.lives = set(workspaces) or self.lives
        looks = [
            self._look(name, "life", Life(name=name, phase="ready", branch="größer/" + name), "catalog")
            for name in sorted(self.lives)
        ]
        now = now_ns()
        stamp = Stamp(min((look.stamp.began for look in looks), default=now), now, CLOCK)
        self.send(Census(stamp, "catalog", "catalog:test", [PROJECT], looks))

    def ready(self, *workspaces: str) -> None:
        """Until the gateway shows exactly these: a new aggregator takes no census from before its start."""

        def shown() -> bool:
            self.census(*workspaces)
            status, body = self.get(f"v1/projects/{PROJECT}/snapshot")
            settled = status == 200 and set(json.loads(body)["workspaces"]) == set(workspaces)
            return settled and self.get("readyz")[0] == 200

        until(shown, lambda: f"the gateway shows {workspaces}\n{self.said()}")

    def get(self, path: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.address() + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def change(self, workspace: str = "w1") -> int:
        """One more line in a workspace; how many there are now."""
        self.insertions += 1
        self.send(self._look(workspace, "git", Git(insertions=self.insertions), "git"))
        return self.insertions

    def session(self, workspace: str, state: Any) -> None:
        self.send(self._look(workspace, "session:s1", Session(provider="claude", state=state), "live"))

    def head(self) -> wire.Head:
        """Where the aggregator itself says that the project stands."""
        heads: list[wire.Head] = []

        async def listen() -> None:
            def take(messages: list[wire.Feed]) -> None:
                for message in messages:
                    if isinstance(message, wire.Heartbeat) and PROJECT in message.heads:
                        heads.append(message.heads[PROJECT])

            feed = bus.feed(self.settings.run_dir, take)
            try:
                async with asyncio.timeout(WAIT_S):
                    while not heads:
                        await asyncio.sleep(0.02)
            finally:
                feed.close()

        # A thread of its own, as the caller's may have a loop that runs.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, listen()).result()
        return heads[-1]


@contextlib.contextmanager
def world(origins: tuple[str, ...] = ()) -> Iterator[World]:
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    made = None
    try:
        made = World(home, origins)
        yield made
    except BaseException:
        print("\n".join(path.read_text() for path in home.glob("*.out")))
        raise
    finally:
        if made is not None:
            made.stop()
        shutil.rmtree(home, ignore_errors=True)


class Follower:
    """A client as a process of its own, which writes a line of JSON for each change."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def python(cls, world: World) -> Follower:
        command = [sys.executable, "-m", "pipeline.cli", "watch", PROJECT, "--json", "--url", world.url]
        return cls([*command, "--home", str(world.home)], ROOT)

    @classmethod
    def node(cls, world: World) -> Follower:
        return cls(["node", "test/follow.js", world.url, world.token, PROJECT], JS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1] if self.lines else {}

    def until(self, condition: Callable[[dict[str, Any]], Any], what: str, seconds: float = WAIT_S) -> None:
        """Wait until the last line is such a one."""
        until(
            lambda: self.lines and condition(self.last), lambda: f"{what}: {self.lines[-5:]}{self._stderr()}", seconds
        )

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> int:
        """End it as a user does; its exit code."""
        self.thaw()
        self.process.terminate()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(5)
            assert not self._reader.is_alive()
            for pipe in (self.process.stdout, self.process.stderr):
                assert pipe is not None
                pipe.close()  # also a second time

    def _stderr(self) -> str:
        if self.process.poll() is None:
            return ""
        assert self.process.stderr is not None
        return f" ended with {self.process.returncode}: {self.process.stderr.read()}"


def agrees(follower: Follower, world: World) -> bool:
    """The client proved the very version and hash that the aggregator announces."""
    head, last = world.head(), follower.last
    return bool(last.get("verified")) and (last["version"], last["hash"]) == (head.version, head.hash)
