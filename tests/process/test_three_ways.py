"""What an orchestrator knows of ratchet, terminals and run scripts comes in by events, the catalog and its database."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from benchmarks import deployment
from pipeline import catalog as catalogs
from pipeline.catalog import Observed
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from tests.foreign import FactoryFactory

# Of each group what is reported first, then what follows it.
SAID: dict[str, list[dict[str, Any]]] = {
    "ratchet": [{"enabled": True, "stalled": True}, {"enabled": True, "stalled": False}],
    "terminal": [{"active": True}, {"active": False}],
    "run": [{"state": "running", "port": 3000}, {"state": "stopped"}],
}


class Deployed(NamedTuple):
    settings: Settings
    parent: Path
    tool: FactoryFactory
    aggregator: psutil.Process

    def path(self, way: str) -> Path:
        return self.parent / f"task-{WAYS.index(way)}"

    def snapshot(self) -> dict[str, Any]:
        url, token = self.settings.url_path.read_text().strip(), self.settings.token_path.read_text().strip()
        told: dict[str, Any] = json.loads(deployment.get(f"{url}v1/projects/project/snapshot", token))
        return told

    def holds(self, way: str, group: str, fields: dict[str, Any]) -> bool:
        """Whether a client would see these values."""
        shown = self.snapshot()["workspaces"].get(worktree_id(self.path(way)), {}).get(group, {})
        return {name: shown.get(name) for name in fields} == fields

    def by_an_event(self, group: str, fields: dict[str, Any]) -> None:
        event = {"workspace": str(self.path("by_an_event")), "group": group, "fields": fields}
        url, token = self.settings.url_path.read_text().strip(), self.settings.token_path.read_text().strip()
        deployment.post(f"{url}v1/events", token, event)

    def by_the_catalog(self, group: str, fields: dict[str, Any]) -> None:
        """A row that somebody writes, of which nobody tells: a census finds it."""
        now, name = now_ns(), worktree_id(self.path("by_the_catalog"))
        store = catalogs.open_url(self.settings.database_url)
        at = Stamp(now, now, CLOCK)
        store.record([Observed("project", name, group, fields, at, wall_ms(), producer="orchestrator")])
        store.close()

    def by_a_foreign_database(self, group: str, fields: dict[str, Any]) -> None:
        if group == "ratchet":
            self.tool.set("WorkspaceRatchet", "w", enabled=fields["enabled"], dispatchStalled=fields["stalled"])
        elif group == "terminal":
            self.tool.set("TerminalSession", "t", status="RUNNING" if fields["active"] else "IDLE")
        else:
            status = {"running": "RUNNING", "stopped": "COMPLETED"}[fields["state"]]
            self.tool.set("WorkspaceRunScript", "w", status=status, port=fields.get("port"))


WAYS = ("by_an_event", "by_the_catalog", "by_a_foreign_database")


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    parent = Path(tempfile.mkdtemp(prefix="tw-repo-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, parent, ignore_errors=True)
        repository = deployment.worktrees(parent, len(WAYS), 1)
        settings = stack.enter_context(deployment.home())
        (settings.home / "treewire.toml").write_text(
            "[gateway]\nport = 0\n[reconciler]\npoll_ms = 50\nmin_gap_ms = 100\n"
            "[sources]\nclaude = false\ncodex = false\ntmux = false\n"
        )
        store = catalogs.open(settings)
        store.add_project(repository, wall_ms())
        store.close()
        tool = FactoryFactory(parent / "data.db", str(repository))
        one = Deployed(settings, parent, tool, stack.enter_context(deployment.process("aggregator", settings)))
        tool.workspace("w", str(one.path("by_a_foreign_database")))
        tool.terminal("t", "w")
        for name in ("gateway", "reconciler", "sources"):
            stack.enter_context(deployment.process(name, settings))
        deployment.until(settings.url_path.exists, 30, "the gateway")
        deployment.until(lambda: shown(one), 30, "the worktrees")
        # Later, or the tool would have given its workspace the name that it goes by.
        add = [sys.executable, "-m", "pipeline.cli", "source", "add", "factory-factory", str(tool.path)]
        subprocess.run([*add, "--home", str(settings.home)], check=True, capture_output=True)
        yield one


def shown(one: Deployed) -> bool:
    with contextlib.suppress(OSError):  # it is not there yet
        return all(one.holds(way, "life", {"phase": "ready"}) for way in WAYS)
    return False


@pytest.mark.parametrize("group", SAID)
@pytest.mark.parametrize("way", WAYS)
def test_what_an_orchestrator_says_of_a_group_is_shown_whichever_way_it_comes(
    deployed: Deployed, way: str, group: str
) -> None:
    for fields in SAID[group]:
        getattr(deployed, way)(group, fields)
        deployment.until(lambda f=fields: deployed.holds(way, group, f), 20, f"{fields} of {group}")  # type: ignore[misc]


def reported(snapshot: dict[str, Any]) -> dict[str, Any]:
    """All but the status, which is derived, and as old as what it was derived from."""
    groups = snapshot["workspaces"].items()
    return {name: {group: told for group, told in has.items() if group != "status"} for name, has in groups}


def test_what_came_whichever_way_is_there_in_the_next_epoch_though_nobody_says_it_again(deployed: Deployed) -> None:
    for way in WAYS:
        for group, said in SAID.items():
            getattr(deployed, way)(group, said[0])
    deployment.until(lambda: all(deployed.holds(w, g, said[0]) for w in WAYS for g, said in SAID.items()), 20, "all")
    before = deployed.snapshot()
    deployed.aggregator.kill()
    deployed.aggregator.wait(10)

    def anew() -> bool:
        with contextlib.suppress(OSError):
            now = deployed.snapshot()
            return bool(now["epoch"] != before["epoch"] and reported(now) == reported(before))
        return False

    with deployment.process("aggregator", deployed.settings):
        deployment.until(anew, 30, "the same in another epoch")
