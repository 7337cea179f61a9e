"""How factory-factory's database is read: its words become ours, and what it derives when asked is derived here too.

It keeps no state of the ratchet, but what the state follows from: pull request, checks, conflict, the switch. And a
session that is ``RUNNING`` there has a process; whether that works or waits for somebody, the database does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.bridges.event import MAX_PORT
from pipeline.bridges.foreign import Fact, Home, Native, Picture, Row, Rows, flag, number, path, text, url, when

NAME: Final = "factory-factory"
MIGRATIONS: Final = "_prisma_migrations"

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Project": ("id", "repoPath", "isArchived"),
    "Workspace": ("id", "projectId", "name", "status", "worktreePath", "branchName", "updatedAt"),
    "WorkspacePR": ("workspaceId", "url", "number", "state", "reviewState", "ciStatus", "hasMergeConflict", "syncedAt"),
    "WorkspaceRatchet": ("workspaceId", "enabled", "dispatchStalled"),
    "WorkspaceRunScript": ("workspaceId", "status", "port", "startedAt"),
    "WorkspaceAutoIteration": ("workspaceId", "mode", "status"),
    "AgentSession": ("id", "workspaceId", "name", "model", "status", "provider", "updatedAt"),
    "TerminalSession": ("id", "workspaceId", "status", "updatedAt"),
}
MAY: Final[Mapping[str, tuple[str, ...]]] = {
    "Project": ("defaultBranch",),
    "AgentSession": ("workflow", "providerSessionId"),
}

PHASES: Final = {
    "NEW": "new",
    "PROVISIONING": "provisioning",
    "READY": "ready",
    "FAILED": "failed",
    "ARCHIVING": "archiving",
    "ARCHIVED": "archived",
}
# PRState → our state and review
PULL_REQUESTS: Final = {
    "DRAFT": ("draft", None),
    "OPEN": ("open", None),
    "CHANGES_REQUESTED": ("open", "changes_requested"),
    "APPROVED": ("open", "approved"),
    "MERGED": ("merged", None),
    "CLOSED": ("closed", None),
}
REVIEWS: Final = {
    "APPROVED": "approved",
    "CHANGES_REQUESTED": "changes_requested",
    "REVIEW_REQUIRED": "required",
}
CHECKS: Final = {"UNKNOWN": "unknown", "PENDING": "pending", "SUCCESS": "success", "FAILURE": "failure"}
SESSIONS: Final = {
    "IDLE": "idle",
    "RUNNING": "unknown",
    "PAUSED": "idle",
    "COMPLETED": "exited",
    "FAILED": "error",
}
RUNS: Final = {
    "IDLE": "stopped",
    "STARTING": "starting",
    "RUNNING": "running",
    "STOPPING": "running",
    "COMPLETED": "stopped",
    "FAILED": "failed",
}
# The agents that other sources see too, by the name that the tool has for them.
AGENTS: Final = {"CLAUDE": "claude", "CODEX": "codex"}
STANDARD: Final = "STANDARD"
SIDE: Final = ("WorkspacePR", "WorkspaceRatchet", "WorkspaceRunScript", "WorkspaceAutoIteration")


def picture(rows: Rows) -> Picture:
    """All workspaces with what is known of them. A row that makes no sense is left out and named."""
    reading = _Reading(rows)
    homes = {home.id: home for row in rows["Workspace"] if (home := reading.home(row)) is not None}
    for row in rows["AgentSession"]:
        reading.session(row, homes)
    return Picture(reading.repositories, homes, reading.problems)


class _Reading:
    def __init__(self, rows: Rows) -> None:
        self.problems: list[str] = []
        self.repositories: dict[str, str] = {}
        self._projects: dict[str, Row] = {}
        for row in rows["Project"]:
            name, where = text(row["id"]), path(row["repoPath"])
            if name and where:
                self._projects[name], self.repositories[name] = row, where
            else:
                self.problems.append(f"Project {name}: repoPath is no absolute path")
        self._beside = {table: {text(row["workspaceId"]): row for row in rows[table]} for table in SIDE}
        self._terminals: dict[str, list[Row]] = {}
        for row in rows["TerminalSession"]:
            self._terminals.setdefault(text(row["workspaceId"]) or "", []).append(row)

    def home(self, row: Row) -> Home | None:
        name, project = text(row["id"]), text(row["projectId"])
        if not name or project not in self._projects:
            self.problems.append(f"Workspace {name}: there is no Project {project}")
            return None
        phase = self._word("Workspace", name, "status", row["status"], PHASES)
        if flag(self._projects[project]["isArchived"]):
            phase = "archived"
        life = {
            "name": text(row["name"]),
            "phase": phase,
            "branch": text(row["branchName"]),
            "base": text(self._projects[project].get("defaultBranch")),
        }
        facts = {"life": Fact(life, when(row["updatedAt"]))}
        pr = self._beside["WorkspacePR"].get(name)
        if pr is not None:
            facts |= self._pull_request(name, pr)
        facts |= self._automation(name, facts)
        run = self._beside["WorkspaceRunScript"].get(name)
        if run is not None:
            state = self._word("WorkspaceRunScript", name, "status", run["status"], RUNS)
            port = number(run["port"], MAX_PORT) if state in ("starting", "running") else None
            facts["run"] = Fact({"state": state, "port": port}, when(run["startedAt"]))
        terminals = self._terminals.get(name)
        if terminals:
            active = any(one["status"] == "RUNNING" for one in terminals)
            changes = filter(None, (when(one["updatedAt"]) for one in terminals))
            facts["terminal"] = Fact({"active": active}, max(changes, default=None))
        return Home(name, project, path(row["worktreePath"]), facts)

    def session(self, row: Row, homes: Mapping[str, Home]) -> None:
        home, name = homes.get(text(row["workspaceId"]) or ""), text(row["id"])
        if home is None or not name:
            return
        provider = text(row["provider"]) or ""
        fields = {
            "provider": AGENTS.get(provider, provider.lower() or None),
            "name": text(row["name"]) or text(row.get("workflow")),
            "model": text(row["model"]),
            "state": self._word("AgentSession", name, "status", row["status"], SESSIONS),
        }
        own = text(row.get("providerSessionId"))
        called = f"{AGENTS[provider]}-{own}" if own and provider in AGENTS else name
        home.facts[f"session:{called}"] = Fact(fields, when(row["updatedAt"]))

    def _pull_request(self, name: str, row: Row) -> dict[str, Fact]:
        """Pull request and checks, as of the tool's own look at them; nothing where there is none."""
        if row["state"] == "NONE" or number(row["number"]) is None:
            return {}
        found = self._word("WorkspacePR", name, "state", row["state"], PULL_REQUESTS)
        state, review = found or (None, None)
        seen = when(row["syncedAt"])
        pull_request = {
            "number": number(row["number"]),
            "url": url(row["url"]),
            "state": state,
            "review": REVIEWS.get((text(row["reviewState"]) or "").upper(), review),
            # That no conflict is noted does not say that somebody looked for one.
            "mergeable": "conflicting" if flag(row["hasMergeConflict"]) else None,
        }
        checks = {
            "state": self._word("WorkspacePR", name, "ciStatus", row["ciStatus"], CHECKS),
            "pr": number(row["number"]),
        }
        return {"pr": Fact(pull_request, seen, seen), "ci": Fact(checks, seen, seen)}

    def _automation(self, name: str, facts: Mapping[str, Fact]) -> dict[str, Fact]:
        row, iteration = self._beside["WorkspaceRatchet"].get(name), self._beside["WorkspaceAutoIteration"].get(name)
        if row is None and iteration is None:
            return {}
        iterates = iteration is not None and iteration["mode"] != STANDARD and iteration["status"] == "RUNNING"
        fields: dict[str, Any] = {"enabled": False, "state": "idle", "stalled": False, "iterating": iterates}
        if row is not None:
            fields["enabled"] = flag(row["enabled"])
            fields["stalled"] = flag(row["dispatchStalled"])
            fields["state"] = ratchet_state(
                bool(fields["enabled"]), _fields(facts, "pr"), _fields(facts, "ci").get("state")
            )
        return {"ratchet": Fact(fields)}

    def _word(self, table: str, name: str, column: str, value: Any, words: Mapping[str, Any]) -> Any:
        """Our word for theirs. One that is not known is no value, and is named."""
        if value in words:
            return words[value]
        self.problems.append(f"{table} {name}: {column} {text(value)!r} is not known")
        return None


def ratchet_state(enabled: bool, pr: Mapping[str, Any], checks: str | None) -> str:
    """What the ratchet is about, the most pressing first: a conflict hides the checks, and they hide a review."""
    state = pr.get("state")
    if state == "merged":
        return "merged"
    if not enabled or state not in ("open", "draft"):
        return "idle"
    if pr.get("mergeable") == "conflicting":
        return "merge_conflict"
    if checks == "pending":
        return "ci_running"
    if checks == "failure":
        return "ci_failed"
    if pr.get("review") == "changes_requested":
        return "review_pending"
    return "ready" if checks == "success" else "idle"


def _fields(facts: Mapping[str, Fact], group: str) -> Mapping[str, Any]:
    return facts[group].fields if group in facts else {}


NATIVE: Final = Native(NEEDS, MAY, picture)
