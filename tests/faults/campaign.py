"""One campaign: a deployment, a load, faults in waves, and after each wave the question when all was well again.

A wave is some faults that overlap. It is over when, after those that last, every process beats and a fresh event in
each project went round, through each gateway to a client of each gateway, whose copy was then proven by its hash. After
some waves the load rests too, and everybody has to hold the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from pipeline import bus
from pipeline.cli.deployment import members
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import Unreachable
from tests.faults.inject import FAULTS, LASTING, PARTS, Fault, Proxy, Stage, draw_wave, hung
from tests.faults.load import PROJECTS, Load, Refused, Tree, told
from tests.faults.record import Costs, CrowdProcess, Listener, Taps
from tests.faults.screens import Crowd, Screen
from tests.faults.validate import Judge
from tests.faults.wall import Wall
from tests.validators import Violation, converged
from tests.world import environment, free_ports

SETTINGS: Final = """
[gateway]
port = {port}
ports = "range"
processes = 2
heartbeat_ms = 500
allowed_hosts = ["127.0.0.1:{proxy}"]
[git]
active_s = 5
idle_s = 15
deadline_ms = 3000
[sources]
discover_s = 3
github = false
claude = false
codex = false
tmux = false
[reconciler]
every_s = 20
[supervisor]
silent_s = 12
revive_s = 3
ready_s = 120
"""
CLIENTS: Final = 100
CROWDS: Final = 2
START_S: Final = 1.5  # faults of a wave begin within this
LAST_S: Final = 0.4  # who ends so shortly before the last one counts as the last too
PATIENCE_S: Final = 90.0
WAVES_TO_QUIET: Final = 12
FRESH_BEAT_S: Final = 3.0
SAMPLE_S: Final = 3.0
LATENCIES: Final = 1000  # below that a 99th percentile is the word of one or two
LATENCY_ROUNDS: Final = 4  # at least
LATENCY_ROUND: Final = 100  # events
MOST_MB: Final = 150.0
MOST_DESCRIPTORS: Final = 300
EXPECTED: Final = (*PARTS,)


class Recovery(NamedTuple):
    """After which fault, how long until all was synced, and until git's numbers were true again too."""

    fault: str
    synced_s: float
    git_s: float


class Outcome(NamedTuple):
    seed: int
    took_s: float
    done: dict[str, int]
    recoveries: list[Recovery]
    convergence_s: list[float]
    latency_s: dict[str, list[float]]
    judge: Judge
    costs: Costs
    did: dict[str, int]
    trouble: dict[str, int]
    history: Path | None

    @property
    def well(self) -> bool:
        return not self.judge.violations


class Probes(Crowd):
    """Clients that stay, in this process: one for each project at one gateway."""

    def __init__(self, judge: Judge, url: str, token: str, history: Path, number: int) -> None:
        self.judge = judge
        clients = [[f"probe-{number}-{project}", project, token, []] for project in PROJECTS]
        super().__init__({"urls": [url], "seed": number, "history": str(history), "clients": clients})
        self.holding = True

    async def follow(self) -> None:
        async with aiohttp.ClientSession() as self.http, asyncio.TaskGroup() as group:
            for screen in self.screens:
                group.create_task(screen.run())

    def say(self, **words: Any) -> None:
        if "claim" in words:
            who, epoch, project, version, hash_ = words["claim"]
            self.judge.claim(who, epoch, project, version, hash_)
        else:
            self.judge.violated(*words["violation"])


class Campaign:
    def __init__(self, home: Path, folder: Path, seed: int, say: Callable[[str], None], events: int) -> None:
        self.home, self.folder, self.seed, self.say = home, folder, seed, say
        self.events = events
        self.draw = random.Random(seed)
        self.judge = Judge()
        self.history = folder / "history"
        self.history.mkdir()
        self.recoveries: list[Recovery] = []
        self.convergence_s: list[float] = []
        self.latency_s: dict[str, list[float]] = {"without": [], "while git hangs": []}
        self.done: dict[str, int] = {}
        self.wall = Wall(folder)
        self._rounds = itertools.count(1)
        self._env = {**environment(), "CLAUDE_CONFIG_DIR": str(folder), "CODEX_HOME": str(folder)}
        self._env |= self.wall.environment

    # ── the deployment ───────────────────────────────────────────────────────────────────────────

    def treewire(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pipeline.cli", *arguments, "--home", str(self.home)]
        done = subprocess.run(command, env=self._env, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"treewire {arguments[0]} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    async def up(self, *paths: str) -> None:
        """Start it. One that was just killed may hold its lock or port for a moment longer."""
        for attempt in range(20):
            try:
                await asyncio.to_thread(self.treewire, "up", "-d", *paths)
                return
            except RuntimeError:
                if attempt == 19:
                    raise
                await asyncio.sleep(0.2)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deployment, load, crowd and listeners."""
        port = free_ports(2)
        proxy = Proxy(port, self.draw)
        await proxy.start()
        (self.home / "treewire.toml").write_text(SETTINGS.format(port=port, proxy=proxy.port))
        self.settings = Settings.load(self.home, environ=self._env)
        self.urls = [f"http://127.0.0.1:{port + number}/" for number in range(2)]
        self.load = Load(self.judge, self.folder, self.seed)
        self.probe_tree = Tree(self.load.repositories[0], "alpha-one-probe-tree")
        self.load._make(self.probe_tree)
        ends: list[Any] = [proxy]
        tasks: list[asyncio.Task[Any]] = []
        crowds: list[CrowdProcess] = []
        try:
            await self.up(*(str(repository) for repository in self.load.repositories))
            self.listener = Listener(self.settings, self.judge, self.history)
            taps = Taps(self.settings, self.judge, self.history)
            ends += [self.listener, taps]
            operator = self.settings.token_path.read_text().strip()
            tokens = {tenant: self._token(tenant) for tenant in sorted({*PROJECTS.values()})}
            through = f"http://127.0.0.1:{proxy.port}/"
            names = [*PROJECTS]
            for number in range(CROWDS):
                clients = []
                for client in range(number, CLIENTS, CROWDS):
                    project = names[client // CROWDS % len(names)]
                    foreign = [other for other in names if PROJECTS[other] != PROJECTS[project]]
                    clients.append([f"client-{client}", project, tokens[PROJECTS[project]], foreign])
                told = {"urls": [*self.urls, through], "seed": self.seed + number, "clients": clients}
                crowds.append(await CrowdProcess.start(self.judge, self.history, number, told))
            self.probes = [
                Probes(self.judge, url, operator, self.history / f"probes-{number}.jsonl", number)
                for number, url in enumerate(self.urls)
            ]
            self.crowds = crowds
            self.stage = Stage(self.settings, self.load, taps, crowds, proxy, self.draw, self.up, set(), self.wall)
            self.costs = Costs(self.settings)
            async with aiohttp.ClientSession() as http:
                bearer = {"Authorization": f"Bearer {operator}"}
                self.load.http, self.load.urls, self.load.bearer = http, self.urls, bearer
                tasks += [asyncio.create_task(probe.follow()) for probe in self.probes]
                for project in PROJECTS:
                    life = self.load.event(project, f"{project}-probe", "life", name="probe", phase="ready")
                    await self.load.post([life])
                tasks.append(asyncio.create_task(self.load.run(http, self.urls, bearer)))
                tasks.append(asyncio.create_task(self._sample()))
                self.tasks = tasks
                yield
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
            for crowd in crowds:
                await crowd.end()
            with contextlib.suppress(RuntimeError):
                await asyncio.to_thread(self.treewire, "down")
            for end in ends:
                end.close()
            for probe in getattr(self, "probes", ()):
                probe.out.close()
            bus.close()
            shutil.copytree(self.settings.log_dir, self.history / "log", dirs_exist_ok=True)

    def _token(self, tenant: str) -> str:
        projects = [project for project, of in PROJECTS.items() if of == tenant]
        options = [word for project in projects for word in ("--project", project)]
        return str(json.loads(self.treewire("token", "create", "--json", *options))["token"])

    async def _sample(self) -> None:
        while True:
            await asyncio.to_thread(self.costs.sample)
            await asyncio.sleep(SAMPLE_S)

    # ── waves ────────────────────────────────────────────────────────────────────────────────────

    async def run(self, faults: int, among: tuple[Fault, ...]) -> None:
        await self.settled("the start")
        await self.quiet()
        self.costs.first.clear()
        self.costs.sample()
        done, waves = 0, 0
        while done < faults:
            done += await self.wave(draw_wave(self.draw, faults - done, among))
            waves += 1
            for task in self.tasks:
                if task.done():
                    task.result()
            if waves % WAVES_TO_QUIET == 0 and done < faults:
                await self.quiet()
            self.say(self.progress(done, faults))
        await self.quiet()
        await self.latencies()
        await self.well()
        self.judge.settle()
        self.costs.sample()
        for name, (mb, descriptors) in self.costs.peak.items():
            self.judge.bound(f"megabytes of {name}", mb, MOST_MB)
            self.judge.bound(f"descriptors of {name}", descriptors, MOST_DESCRIPTORS)

    def progress(self, done: int, faults: int) -> str:
        worst = max((one.synced_s for one in self.recoveries), default=0.0)
        checked = self.judge.checked
        return (
            f"{done} of {faults} faults, {len(self.judge.violations)} violations, slowest recovery {worst:.1f} s, "
            f"{checked['states']:,} states and {checked['copies']:,} copies judged"
        )

    async def wave(self, wave: list[Fault]) -> int:
        """How many of them found something to break.

        The clock of recovery starts when the last of the lasting faults is over, whatever else still comes.
        """
        self.judge.during = tuple(sorted({fault.name for fault in wave}))
        lasting = [fault for fault in wave if fault.part in LASTING] or wave
        ends: dict[Fault, float] = {}
        void: set[Fault] = set()

        async def one(fault: Fault) -> None:
            if len(wave) > 1:
                await asyncio.sleep(self.draw.uniform(0, START_S))
            self.say(f"  {fault.name} {fault.target}")
            if await fault.do(self.stage) is False:
                void.add(fault)
            ends[fault] = time.monotonic()

        async with asyncio.TaskGroup() as group:
            tasks = {fault: group.create_task(one(fault)) for fault in wave}
            await asyncio.wait([tasks[fault] for fault in lasting])
            over = max(ends.get(fault, 0) for fault in lasting)
            synced, measured = await self.settled(" and ".join(self.judge.during), over)
        real = [fault for fault in wave if fault not in void]
        for fault in real:
            self.done[fault.name] = self.done.get(fault.name, 0) + 1
            if fault in lasting and ends[fault] >= over - LAST_S:
                self.recoveries.append(Recovery(fault.name, synced, measured))
        self.judge.during = ()
        return len(real)

    async def settled(self, after: str, over: float = 0.0) -> tuple[float, float]:
        """Seconds from `over` until all is well, and until git's numbers are, too."""
        over = over or time.monotonic()
        number = next(self._rounds)
        self.load._write(self.probe_tree, 1)

        async def post(project: str, gateway: int) -> None:
            fields = {"provider": "probe", "name": str(number), "state": "working"}
            event = self.load.event(project, f"{project}-probe", f"session:g{gateway}", **fields)
            try:
                await self.load.post([event], self.urls[gateway])
            except Refused as error:
                self.judge.violated("events", str(error))

        posts = asyncio.gather(*(post(project, gateway) for project in PROJECTS for gateway in range(len(self.urls))))
        synced = measured = 0.0
        deadline = over + PATIENCE_S
        try:
            while not (synced and measured):
                now = time.monotonic()
                if not synced and posts.done() and self._synced(number, over):
                    synced = now - over
                if not measured and self._measured():
                    measured = now - over
                if now > deadline:
                    missing = "git's numbers" if synced else self._why(number, over, posts.done())
                    self.judge.violated("recovery", f"not well {PATIENCE_S:g} s after {after}: {missing}")
                    return synced or PATIENCE_S, measured or PATIENCE_S
                await asyncio.sleep(0.02)
        finally:
            posts.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await posts
        return synced, measured

    async def well(self) -> None:
        """In the end every process is, as `treewire status` has it; the watchdog too."""
        deadline, ill = time.monotonic() + PATIENCE_S, ["supervisord does not answer"]
        while time.monotonic() < deadline:
            with contextlib.suppress(Unreachable):
                found = await asyncio.to_thread(members, self.settings)
                ill = [f"{one.name} is {one.state}" for one in found if not one.well]
                if not ill:
                    return
            await asyncio.sleep(0.2)
        self.judge.violated("recovery", f"{PATIENCE_S:g} s after the end not all is well: {', '.join(ill)}")

    def _screens(self) -> Iterator[Screen]:
        for probe in self.probes:
            yield from probe.screens

    def _synced(self, number: int, over: float) -> bool:
        return not self._why(number, over, True)

    def _why(self, number: int, over: float, posted: bool) -> str:
        """What is not well yet; empty if all is."""
        if not posted:
            return "events are not accepted"
        for screen in self._screens():
            copy = screen.copy
            if copy.epoch != self.listener.epoch or copy.state != "live" or screen.proven_at <= over:
                return f"{screen.name} is {copy.state} at {copy.version} of {copy.epoch}"
            sessions = ((copy.workspaces or {}).get(f"{screen.project}-probe") or {}).get("sessions") or {}
            for gateway in range(len(self.urls)):
                if (sessions.get(f"g{gateway}") or {}).get("name") != str(number):
                    return f"{screen.name} has not seen the event through gateway {gateway}"
        beats = {beat.name: beat for beat in read_beats(self.settings.run_dir)}
        for name in EXPECTED:
            beat = beats.get(name)
            dead = beat is None or beat.pid in self.stage.killed or not beat.alive()
            if beat is None or dead or beat.state != "running" or beat.age_s() > FRESH_BEAT_S:
                return (
                    f"{name} is {beat.state if beat else 'not there'} {beat.figures.get('reason', '') if beat else ''}"
                )
        return ""

    def _measured(self) -> bool:
        """The line that was written when this was asked is counted on every screen of its project."""
        project = self.probe_tree.repository.name
        return all(
            (((screen.copy.workspaces or {}).get(self.probe_tree.id) or {}).get("git") or {}).get("insertions")
            == self.probe_tree.lines
            for screen in self._screens()
            if screen.project == project
        )

    # ── quiet ────────────────────────────────────────────────────────────────────────────────────

    async def quiet(self) -> None:
        """Nothing changes any more; how long until everybody holds the truth, and has proven it."""
        await self.load.rest()
        began = time.monotonic()
        for crowd in self.crowds:
            crowd.tell("hold")
        try:
            while (error := await self._disagreement(began)) is not None:
                if time.monotonic() - began > PATIENCE_S:
                    self.judge.violated("convergence", str(error)[:2000])
                    break
                await asyncio.sleep(0.05)
            self.convergence_s.append(time.monotonic() - began)
        finally:
            for crowd in self.crowds:
                crowd.tell("go")
            self.load.busy.set()

    async def _disagreement(self, since: float) -> Violation | None:
        stands = []
        try:
            for screen in self._screens():
                converged(screen.name, told(screen.copy.workspaces or {}, screen.project), self._truth(screen.project))
                stands.append(screen.stands())
            for crowd in self.crowds:
                stands += await crowd.where()
            head = self.listener.head
            for one in stands:
                true = head.heads.get(one["project"]) if head is not None else None
                if head is None or true is None:
                    raise Violation("the aggregator is not heard")
                holds = {name: one[name] for name in ("epoch", "version", "hash", "proven", "state")}
                wanted = {
                    "epoch": head.epoch,
                    "version": true.version,
                    "hash": true.hash,
                    "proven": True,
                    "state": "live",
                }
                converged(one["name"], holds, wanted)
        except Violation as error:
            return error
        except TimeoutError:
            return Violation("a crowd does not say where it stands")
        return None

    def _truth(self, project: str) -> dict[str, Any]:
        return self.load.true(project)

    # ── an event's way while git hangs ───────────────────────────────────────────────────────────

    async def latencies(self) -> None:
        """From the write to a client, with git hanging and without, by turns; the load goes on as before."""
        rounds = max(LATENCY_ROUNDS, self.events // LATENCY_ROUND)
        for _ in range(rounds):
            await self._latencies(self.latency_s["without"], self.events // rounds)
            async with hung(self.stage, 2):
                await asyncio.sleep(1)
                await self._latencies(self.latency_s["while git hangs"], self.events // rounds)
            await self.settled("a git that hung")

    async def _latencies(self, found: list[float], count: int) -> None:
        project, (url, *_) = next(iter(PROJECTS)), self.urls
        screen = self.probes[0].screens[0]
        for _ in range(count):
            number = next(self._rounds)
            event = self.load.event(project, f"{project}-probe", "session:g0", name=str(number), state="working")
            began = time.monotonic()
            posted = asyncio.create_task(self.load.post([event], url))
            while not screen.shows(f"{project}-probe", "g0", str(number)):
                if time.monotonic() - began > PATIENCE_S:
                    self.judge.violated("recovery", "an event was not seen")
                    break
                await screen.news()
            found.append(time.monotonic() - began)
            await posted
            await asyncio.sleep(self.draw.uniform(0.02, 0.08))


def campaign(
    faults: int,
    seed: int,
    only: str = "",
    say: Callable[[str], None] = lambda _: None,
    parent: Path | None = None,
    events: int = LATENCIES,
) -> Outcome:
    """Run one. The history stays, below `parent` or where temporary files go, if anything was violated.

    `events`: how many are timed with git hanging, and without.
    """
    among = tuple(fault for fault in FAULTS if only in ("", fault.name))
    folder = Path(tempfile.mkdtemp(prefix="tw-faults-", dir=parent))
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    one = Campaign(home, folder, seed, say, events)
    began = time.monotonic()
    kept = True

    async def run() -> None:
        async with one.running():
            await one.run(faults, among)

    try:
        asyncio.run(run())
        kept = bool(one.judge.violations)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        for repository in [*PROJECTS, *(path.name for path in folder.iterdir() if path.is_dir())]:
            if repository != "history":
                shutil.rmtree(folder / repository, ignore_errors=True)
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"the history is in {one.history}")
    crowds = {f"crowd's {name}": sum(crowd.counts[name] for crowd in one.crowds) for name in one.crowds[0].counts}
    did = {**one.load.done, **crowds, **one.judge.checked}
    return Outcome(
        seed=seed,
        took_s=time.monotonic() - began,
        done=one.done,
        recoveries=one.recoveries,
        convergence_s=one.convergence_s,
        latency_s=one.latency_s,
        judge=one.judge,
        costs=one.costs,
        did=did,
        trouble=dict(one.load.trouble),
        history=one.history if kept else None,
    )
