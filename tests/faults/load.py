"""What goes on while things break: people, agents and an orchestrator at work in several projects of two tenants.

Everything that is said or done is told to the truth first (`trying`), and is known to hold once it was accepted.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp

from pipeline.catalog.ids import worktree_id
from tests.faults.validate import Judge
from tests.gitkit import add_worktree, commit, git, make_repo

PROJECTS: Final = {"alpha-one": "alpha", "alpha-two": "alpha", "beta-one": "beta"}
WORKSPACES: Final = 5
TREES: Final = 3
SESSIONS: Final = ("a", "b")
STATES: Final = ("working", "idle", "waiting", "error", "starting")
EVENT_S: Final = 0.25
EDIT_S: Final = 0.6
ANSWER_S: Final = 60.0
FIRST_PORT: Final = 1000


class Refused(Exception):
    """Something that should have been taken was not."""


class Workspace:
    """One of the orchestrator's, as it last was accepted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 0
        self.alive = False
        self.port = FIRST_PORT
        self.fields: dict[str, dict[str, Any]] = {}


class Tree:
    """One worktree: how often it was made, and how many lines there are that its base has not."""

    def __init__(self, repository: Path, name: str) -> None:
        self.repository, self.path = repository, repository.parent / name
        self.id = worktree_id(self.path)
        self.generation = self.lines = 0
        self.there = False


class Load:
    """`quiet` is set while nothing shall change."""

    def __init__(self, judge: Judge, folder: Path, seed: int) -> None:
        self.judge, self.truth, self.draw = judge, judge.truth, random.Random(seed)
        self.done: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.repositories = [make_repo(folder / name, {"start.txt": "1\n"}) for name in PROJECTS]
        self.trees = [Tree(repo, f"{repo.name}-t{n}") for repo in self.repositories for n in range(TREES)]
        self.workspaces = {name: [Workspace(f"{name}-w{n}") for n in range(WORKSPACES)] for name in PROJECTS}
        self.busy = asyncio.Event()
        self._at_work = 0
        self._numbers = itertools.count(1)
        self._seq = itertools.count(1)
        for tree in self.trees:
            self._make(tree)

    async def run(self, http: aiohttp.ClientSession, urls: list[str], bearer: dict[str, str]) -> None:
        self.http, self.urls, self.bearer = http, urls, bearer
        self.busy.set()
        async with asyncio.TaskGroup() as group:
            for project in PROJECTS:
                group.create_task(self._again(EVENT_S, lambda project=project: self.report(project)))
            group.create_task(self._again(EDIT_S, self.edit))

    async def rest(self) -> None:
        """Until what was begun is done, and nothing more is."""
        self.busy.clear()
        while self._at_work:
            await asyncio.sleep(0.02)

    async def _again(self, pause: float, step: Any) -> None:
        while True:
            await self.busy.wait()
            self._at_work += 1
            try:
                await step()
            except Refused as error:
                self.judge.violated("events", str(error))
            finally:
                self._at_work -= 1
            await asyncio.sleep(pause * self.draw.uniform(0.3, 1.7))

    # ── an orchestrator ──────────────────────────────────────────────────────────────────────────

    async def report(self, project: str) -> None:
        one = self.draw.choice(self.workspaces[project])
        what = self.draw.random()
        if not one.alive:
            await self._revive(project, one)
        elif what < 0.06:
            self.truth.lives[one.name] = 0
            await self.post([self.event(project, one.name, "life", phase="archived")])
            one.alive = False
            self.truth.ended(one.name, one.incarnation)
            self.done["archived"] += 1
        elif what < 0.2:
            await self._tell(project, one, "life")
        else:
            groups = ["run", "pr", *(f"session:{name}" for name in SESSIONS)]
            await self._tell(project, one, *self.draw.sample(groups, self.draw.randrange(1, len(groups))))

    async def _revive(self, project: str, one: Workspace) -> None:
        one.incarnation += 1
        self.truth.lives[one.name] = one.incarnation
        one.fields = {}
        await self._tell(project, one, "life")
        one.alive = True
        self.done["born"] += 1

    async def _tell(self, project: str, one: Workspace, *groups: str) -> None:
        told = {group: self._fields(one, group) for group in groups}
        await self.post([self.event(project, one.name, group, **fields) for group, fields in told.items()])
        one.fields.update(told)

    def _fields(self, one: Workspace, group: str) -> dict[str, Any]:
        number = next(self._numbers)
        if group != "run":
            self.truth.trying(one.name, group, number)
        match group:
            case "life":
                return {"name": f"{one.name} {number}.{one.incarnation}", "phase": "ready"}
            case "run":
                port = one.port = one.port + 1
                self.truth.trying(one.name, group, port)
                return {"state": self.draw.choice(("running", "stopped")), "port": port}
            case "pr":
                return {"number": number, "state": "open"}
        return {"provider": "codex", "name": str(number), "state": self.draw.choice(STATES)}

    def event(self, project: str, workspace: str, group: str, **fields: Any) -> dict[str, Any]:
        told = {"project": project, "workspace": workspace, "group": group, "fields": fields}
        return {**told, "source": "faults", "seq": next(self._seq)}

    async def post(self, batch: list[dict[str, Any]], url: str = "") -> None:
        """Until it is accepted: by whichever gateway, or that at `url`. Raises `Refused`."""
        while True:
            try:
                timeout = aiohttp.ClientTimeout(total=ANSWER_S)
                where = (url or self.draw.choice(self.urls)) + "v1/events"
                async with self.http.post(where, json=batch, headers=self.bearer, timeout=timeout) as answer:
                    said = await answer.json(content_type=None)
                    if answer.status == 202 and "lost" not in said:
                        self.done["events"] += len(batch)
                        return
                    if answer.status != 503:
                        raise Refused(f"{batch} was answered with {answer.status}: {said}")
                    self.trouble["503"] += 1
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.trouble[type(error).__name__] += 1
            await asyncio.sleep(0.2)

    # ── people and agents ────────────────────────────────────────────────────────────────────────

    async def edit(self) -> None:
        await asyncio.to_thread(self._edit, self.draw.choice(self.trees), self.draw.random())

    def _edit(self, tree: Tree, what: float) -> None:
        if not tree.there:
            self._make(tree)
        elif what < 0.03:
            self.truth.lives[tree.id] = 0  # before: from here on its files go
            git(tree.repository, "worktree", "remove", "--force", tree.path)
            tree.there = False
            self.done["worktrees removed"] += 1
        elif what < 0.15:
            commit(tree.path)
            self.done["commits"] += 1
        else:
            self._write(tree, self.draw.randrange(1, 4))
            self.done["edits"] += 1

    def _make(self, tree: Tree) -> None:
        """A new one at the same place starts with more lines than the last had, so that each number has one order."""
        tree.generation += 1
        self.truth.lives[tree.id] = tree.generation
        add_worktree(tree.repository, tree.path, f"{tree.path.name}.{tree.generation}")
        tree.there = True
        self._write(tree, tree.lines + 1, anew=True)
        self.done["worktrees made"] += 1

    def _write(self, tree: Tree, more: int, anew: bool = False) -> None:
        lines = more if anew else tree.lines + more
        self.truth.trying(tree.id, "git", lines)
        with (tree.path / "work.txt").open("a") as file:
            file.write("".join(f"line {n}\n" for n in range(more)))
        tree.lines = lines

    # ── the truth ────────────────────────────────────────────────────────────────────────────────

    def true(self, project: str) -> dict[str, Any]:
        """What has to be on every screen of this project, after quiet; as `told` says it."""
        of_events = {
            one.name: {
                "name": one.fields["life"]["name"],
                "port": one.fields.get("run", {}).get("port"),
                "pr": one.fields.get("pr", {}).get("number"),
                "sessions": {
                    group.removeprefix("session:"): (fields["name"], fields["state"])
                    for group, fields in sorted(one.fields.items())
                    if group.startswith("session:")
                },
            }
            for one in self.workspaces[project]
            if one.alive
        }
        of_trees = {
            tree.id: {"branch": f"{tree.path.name}.{tree.generation}", "lines": tree.lines}
            for tree in self.trees
            if tree.repository.name == project and tree.there
        }
        return of_events | of_trees


def told(workspaces: dict[str, Any], project: str) -> dict[str, Any]:
    """What a screen says, in the words of `Load.true`; without the repository's own worktree."""
    found: dict[str, Any] = {}
    for name, entry in workspaces.items():
        life = entry.get("life") or {}
        if life.get("branch") == "main" or name.startswith(f"{project}-probe"):
            continue
        if name.startswith(f"{project}-w"):
            found[name] = {
                "name": life.get("name"),
                "port": (entry.get("run") or {}).get("port"),
                "pr": (entry.get("pr") or {}).get("number"),
                "sessions": {
                    id_: (one.get("name"), one.get("state"))
                    for id_, one in sorted((entry.get("sessions") or {}).items())
                },
            }
        else:
            lines = (entry.get("git") or {}).get("insertions")
            found[name] = {"branch": life.get("branch"), "lines": lines}
    return found
