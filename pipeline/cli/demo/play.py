"""Playing the script: each actor's acts in their order, several actors at once, at the pace that the host can bear."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from pipeline import catalog as catalogs
from pipeline.cli import deployment
from pipeline.cli.demo import still as scene
from pipeline.cli.demo.acts import Act, Add, Advance, Reconnect, Remove, Report
from pipeline.cli.demo.reporter import Reporter
from pipeline.cli.demo.script import Actor, Cast, Chatter
from pipeline.cli.demo.stage import Stage, StageError
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings

GITS: Final = 4  # as many at once; more would only wait for each other
SHOWN_S: Final = 60.0
POLL_S: Final = 0.05


class Play:
    """One performance."""

    def __init__(self, folder: Path, projects: Sequence[str]) -> None:
        self.stage = Stage(folder, projects)
        self._reporter: Reporter | None = None
        self._acts = self._failed = 0
        self._drift = self._chatter = 0

    def build(self, still: bool) -> None:
        """Make the repositories, and what is there before anybody looks."""
        self.stage.build()
        for act in scene.worktrees() if still else ():
            self.stage.perform(act)
            self._acts += 1

    def did(self) -> dict[str, Any]:
        """How much of what was done."""
        counts = self._reporter.counts()._asdict() if self._reporter else {"reports": 0, "lost": 0}
        return {"acts": self._acts, "failed": self._failed, **counts, "chatter": self._chatter, "drift": self._drift}

    async def run(
        self,
        settings: Settings,
        cast: Cast | None,
        speed: float,
        events_per_second: float,
        seconds: float | None,
        ready: Callable[[], None],
    ) -> None:
        """Play until the time is up or we are cancelled; without a cast, the still scene."""
        catalog = await asyncio.to_thread(catalogs.open, settings)
        token = settings.token_path.read_text().strip()
        reporter = self._reporter = Reporter(deployment.url(settings), token, self.stage, catalog)
        self._gits = asyncio.Semaphore(GITS)
        self._repositories = {project: asyncio.Lock() for project in self.stage.projects}
        try:
            async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tasks:
                tasks.create_task(reporter.run())
                tasks.create_task(self._count_drift(settings))
                if cast is None:
                    for report in scene.reports():
                        await reporter.report(report)
                    await reporter.flush()
                    await self._shown()
                ready()
                if seconds is not None:
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                if cast is not None:
                    for actor in cast.actors():
                        tasks.create_task(self._play(actor, speed))
                    if events_per_second:
                        tasks.create_task(self._chat(cast.chatter(), events_per_second))
        except TimeoutError:
            pass
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            self._read_drift(settings)
            await reporter.close()
            catalog.close()

    async def _play(self, actor: Actor, speed: float) -> None:
        """An actor's next acts wait for its last ones: a host that is too slow makes the story slow, not wrong."""
        now = 0.0
        while True:
            await asyncio.sleep((actor.due - now) / speed)
            now = actor.due
            for act in actor.step(now):
                await self._perform(act)

    async def _perform(self, act: Act) -> None:
        assert self._reporter is not None
        match act:
            case Report():
                await self._reporter.report(act)
            case Reconnect():
                await self._reporter.reconnect()
            case Add() | Remove():  # git keeps the list of worktrees in one place
                async with self._repositories[act.where.project]:
                    await self._git(act)
            case Advance():
                async with self._repositories[act.project]:
                    await self._git(act)
            case _:
                await self._git(act)

    async def _git(self, act: Act) -> None:
        async with self._gits:
            try:
                await asyncio.to_thread(self.stage.perform, act)
            except StageError as error:
                self._failed += 1
                if self._failed == 1:  # one is enough to see what is wrong
                    click.echo(f"treewire demo: {error}", err=True)
        self._acts += 1

    async def _chat(self, chatter: Chatter, events_per_second: float) -> None:
        assert self._reporter is not None
        loop = asyncio.get_running_loop()
        began, due = loop.time(), 0
        while True:
            while due < (loop.time() - began) * events_per_second:
                due += 1
                report = chatter.next(self._reporter.known())
                if report is not None:
                    await self._reporter.report(report)
                    self._chatter += 1
            await asyncio.sleep(POLL_S)

    async def _count_drift(self, settings: Settings) -> None:
        while True:
            await asyncio.sleep(1)
            self._read_drift(settings)

    def _read_drift(self, settings: Settings) -> None:
        for beat in read_beats(settings.run_dir):
            if beat.name == "aggregator":
                self._drift = int(beat.figures.get("drift", 0))

    async def _shown(self) -> None:
        """Return once every workspace of the scene has the status that it shall have, and git's numbers."""
        assert self._reporter is not None
        deadline = asyncio.get_running_loop().time() + SHOWN_S
        for project in scene.PROJECTS:
            expected = {row.branch: row.code for row in scene.SCENE if row.project == project}
            while missing := _missing(await self._reporter.snapshot(project), expected):
                if asyncio.get_running_loop().time() > deadline:
                    raise click.ClickException(f"the scene does not come about: {missing}; see `treewire status`")
                await asyncio.sleep(POLL_S)


def _missing(workspaces: dict[str, Any], expected: dict[str, str]) -> dict[str, str]:
    """Who does not show yet what it shall, and what it shows."""
    named = {entry.get("life", {}).get("name"): entry for entry in workspaces.values()}
    shown = {name: named.get(name, {}).get("status", {}).get("code", "nothing") for name in expected}
    return {name: shown[name] for name, code in expected.items() if shown[name] != code or "git" not in named[name]}
