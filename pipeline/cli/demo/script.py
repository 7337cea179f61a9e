"""The script of the demo: who does what, and when, by a seed. It knows no clock and touches nothing.

Times are seconds of the story. An actor tells when it is due, and what it does then; the same seed tells the same
story, in whichever steps it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final, TypeAlias

from pipeline.cli.demo.acts import HEAD, Act, Add, Advance, Commit, Edit, Rebase, Reconnect, Remove, Report, Where

# What happens at once, and how long nothing happens afterwards.
Scene: TypeAlias = tuple[list[Act], float]

PROJECTS: Final = ("lighthouse", "tidepool", "foundry", "orchard", "signalbox", "quarry")
AGENTS_PER_PROJECT: Final = 8
DELAY_S: Final = 0.8  # between two agents that begin

VERBS: Final = ("fix", "add", "speed-up", "rename", "test", "split", "retry", "cache", "document", "simplify")
NOUNS: Final = (
    *("login", "search", "export", "uploads", "billing", "webhooks", "sessions", "charts", "emails", "imports"),
    *("routing", "locales", "invites", "backups", "limits", "themes", "tags", "feeds", "reports", "tokens"),
)
MODELS: Final = (("claude", "claude-opus"), ("claude", "claude-sonnet"), ("codex", "gpt-codex"))
ASKS: Final = ("permission", "permission", "question", "plan", "auth")

LOST: Final = 0.05
ASKS_P: Final = 0.35
CRASHES_P: Final = 0.06
SETUP_FAILS_P: Final = 0.05
CHECKS_FAIL_P: Final = 0.45
REVIEW_ASKS_P: Final = 0.3
REBASES_P: Final = 0.4
CHECKS: Final = 18
FILES: Final = 24  # that every project has from the beginning


class Actor:
    """Somebody with a story of scenes. `due`: when the next one is."""

    def __init__(self, story: Iterator[Scene], begins: float) -> None:
        self._story = story
        self.due = begins

    def step(self, now: float) -> list[Act]:
        """What is done up to `now`, in order."""
        acts: list[Act] = []
        while self.due <= now:
            done, pause = next(self._story)
            acts += done
            self.due += pause
        return acts


class Cast:
    """All who play: the agents, and somebody who moves main and lets the reporter reconnect."""

    def __init__(self, agents: int, seed: int) -> None:
        self.agents, self.seed = agents, seed
        self.projects = PROJECTS[: max(2, min(len(PROJECTS), -(-agents // AGENTS_PER_PROJECT)))]

    def actors(self) -> list[Actor]:
        """Anew, each at its beginning."""
        agents = [
            Actor(Agent(self.projects[n % len(self.projects)], n, self.agents, self._dice(n)).story(), n * DELAY_S)
            for n in range(self.agents)
        ]
        return [Actor(_around(self.projects, self._dice("around")), 5.0), *agents]

    def chatter(self) -> Chatter:
        return Chatter(self._dice("chatter"))

    def _dice(self, whose: int | str) -> Random:
        return Random(f"{self.seed}:{whose}")  # noqa: S311  a story, not a secret


class Agent:
    """One of so many agents: it takes on one task after the other, each in a worktree of its own."""

    def __init__(self, project: str, number: int, of: int, random: Random) -> None:
        self.project, self.number, self.of, self.random = project, number, of, random
        self.where = Where(project, "")
        self.tasks = self.sessions = 0
        self.session: dict[str, Any] = {}

    def story(self) -> Iterator[Scene]:
        while True:
            self.tasks += 1
            yield from self._task()

    def _task(self) -> Iterator[Scene]:
        number = self.number + 1 + self.of * (self.tasks - 1)  # nobody else's
        self.where = Where(self.project, f"{self.random.choice(VERBS)}-{self.random.choice(NOUNS)}-{number}")
        yield [self._life("provisioning"), Add(self.where, self.random.choice((0, 0, 1, 2)))], self._about(3)
        if self._happens(SETUP_FAILS_P):
            yield [self._life("failed")], self._about(15)
            yield self._farewell(), self._about(8)
            return
        yield [self._life("ready")], self._about(1)
        yield from self._begin()
        if self._happens(0.4):
            yield [self._say("run", state="starting")], self._about(2)
            yield [self._say("run", state="running", port=3000 + self.number % 1000)], self._about(1)
        for _ in range(self.random.randint(1, 3)):
            yield from self._work()
        yield from self._pull_request()
        yield self._farewell(), self._about(10)

    def _begin(self) -> Iterator[Scene]:
        """A session starts; a former one stays as it ended."""
        self.sessions += 1
        provider, model = self.random.choice(MODELS)
        self.session = {"provider": provider, "model": model, "name": self.where.branch.rpartition("-")[0]}
        yield [self._is("starting")], self._about(2)

    def _work(self) -> Iterator[Scene]:
        """Edits, a question now and then, a commit; it may crash and begin again."""
        yield [self._is("working"), self._say("terminal", active=True)], self._about(2)
        for n in range(self.random.randint(2, 6)):
            if self._happens(0.5):
                edit = Edit(self.where, f"src/{self.where.branch}/step{n}.py", self.random.randint(1, 60))
            else:
                file = f"lib/part{self.random.randrange(FILES)}.py"
                edit = Edit(self.where, file, self.random.randint(0, 20), self.random.randint(1, 12))
            yield [edit], self._about(3)
            if self._happens(CRASHES_P):
                yield [self._is("exited", crashed=True)], self._about(12)
                yield from self._begin()
                yield [self._is("working")], self._about(2)
            elif self._happens(ASKS_P / 3):
                yield [self._is("waiting", waiting_for=self.random.choice(ASKS))], self._about(10)
                yield [self._is("working")], self._about(2)
        if self._happens(REBASES_P):
            yield [Rebase(self.where)], self._about(2)
        yield [Commit(self.where, f"{self.where.branch}: next step")], self._about(2)
        yield [self._is("idle"), self._say("terminal", active=False)], self._about(4)

    def _pull_request(self) -> Iterator[Scene]:
        number = self.number + 1 + self.of * (self.tasks - 1)
        ratchet = self._happens(0.5)
        opened = {"number": number, "url": f"https://github.example/acme/{self.project}/pull/{number}", "state": "open"}
        if ratchet:
            yield [self._say("ratchet", enabled=True, state="idle", stalled=False)], 0.5
        yield [self._say("pr", **opened, review="required", mergeable="unknown", head=HEAD)], self._about(1)
        while True:
            yield from self._checks(ratchet)
            if not self._happens(REVIEW_ASKS_P):
                break
            acts: list[Act] = [self._say("pr", review="changes_requested")]
            yield [*acts, *([self._say("ratchet", state="review_pending")] if ratchet else [])], self._about(8)
            yield from self._work()
            yield [self._say("pr", head=HEAD, review="required")], self._about(1)
        ready: list[Act] = [self._say("pr", review="approved")]
        yield [*ready, *([self._say("ratchet", state="ready")] if ratchet else [])], self._about(8)
        yield [self._is("exited", crashed=False), self._say("pr", state="merged")], self._about(8)

    def _checks(self, ratchet: bool) -> Iterator[Scene]:
        """Checks run until they pass; who mends them is the ratchet, or the agent when told to."""
        while True:
            done = self.random.randrange(CHECKS)
            acts: list[Act] = [self._say("ci", state="pending", passed=0, failed=0, pending=CHECKS, head=HEAD)]
            yield [*acts, *([self._say("ratchet", state="ci_running")] if ratchet else [])], self._about(4)
            yield [self._say("ci", state="pending", passed=done, failed=0, pending=CHECKS - done)], self._about(4)
            if not self._happens(CHECKS_FAIL_P):
                break
            failed = self.random.randint(1, 3)
            acts = [self._say("ci", state="failure", passed=CHECKS - failed, failed=failed, pending=0)]
            yield [*acts, *([self._say("ratchet", state="ci_failed")] if ratchet else [])], self._about(6)
            yield from self._work()
            yield [self._say("pr", head=HEAD)], self._about(1)
        acts = [self._say("ci", state="success", passed=CHECKS, failed=0, pending=0)]
        yield [*acts, self._say("pr", mergeable="mergeable")], self._about(4)

    def _farewell(self) -> list[Act]:
        return [self._life("archived"), Remove(self.where)]

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def _life(self, phase: str) -> Report:
        # Never lost: who would know of a workspace that nobody announced?
        return Report(self.where, "life", {"phase": phase, "name": self.where.branch, "branch": self.where.branch})

    def _is(self, state: str, waiting_for: str | None = None, crashed: bool | None = None) -> Report:
        fields = {**self.session, "state": state, "waiting_for": waiting_for, "crashed": crashed}
        return self._say(f"session:s{self.sessions}", **fields)

    def _say(self, group: str, **fields: Any) -> Report:
        # A lost pull request would make its checks speak of another one until the census.
        lost = not group.startswith(("pr", "ci")) and self._happens(LOST)
        return Report(self.where, group, fields, lost=lost)

    def _about(self, seconds: float) -> float:
        return seconds * self.random.uniform(0.5, 1.5)

    def _happens(self, probability: float) -> bool:
        return self.random.random() < probability


class Chatter:
    """Reports of terminal output, as many as are asked for: load, and nothing else."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.said = 0

    def next(self, known: Sequence[Where]) -> Report | None:
        """One for any of these worktrees; nothing where there is none."""
        if not known:
            return None
        self.said += 1
        return Report(self.random.choice(known), "terminal", {"active": True, "last_output": self.said})


def _around(projects: Sequence[str], random: Random) -> Iterator[Scene]:
    """What happens around the agents."""
    release = 0
    while True:
        for _ in range(random.randint(1, 3)):
            release += 1
            yield [Advance(random.choice(projects), f"release {release}")], random.uniform(8, 20)
        yield [Reconnect()], random.uniform(5, 15)
