"""`treewire report`, and what agents run: a state from a shell, and commands that never fail or hold up an agent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import catalog
from pipeline.cli.hooks import TOKEN
from pipeline.runtime.clock import wall_ms
from tests.world import World, deployed, environment, runs

STOP = {"session_id": "s1", "hook_event_name": "Stop"}


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


async def _followed(world: World) -> Path:
    folder = world.settings.home / "web" / "w1"
    folder.mkdir(parents=True)
    store = await asyncio.to_thread(catalog.open_url, world.settings.database_url)
    await asyncio.to_thread(store.add_project, folder.parent, wall_ms())
    store.close()
    await world.ready()
    life = {"project": "web", "workspace": "w1", "group": "life", "fields": {"name": "w1", "path": str(folder)}}
    assert (await world.post(life))[0] == 202
    return folder


def treewire(home: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--home", str(home)]
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 60, "input": "", **more}
    return subprocess.run(command, **options)


def _session(client: Any, session: str) -> dict[str, Any]:
    found: dict[str, Any] = client.state.get("w1", {}).get("sessions", {}).get(session, {})
    return found


def test_a_report_shows_on_every_screen(world: World) -> None:
    async def test(world: World) -> None:
        folder = await _followed(world)
        home = world.settings.home

        async def report(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(treewire, home, "report", *arguments, **more)

        async with world.client() as client:
            done = await report("--state", "waiting", "--kind", "permission", "--provider", "aider", cwd=folder)
            assert (done.returncode, done.stdout) == (0, "Reported: the session report is waiting.\n"), done.stderr
            await client.until(lambda c: _session(c, "report").get("waiting_for") == "permission")
            assert _session(client, "report")["provider"] == "aider"
            done = await report("-w", "w1", "-p", "web", "--state", "working", "--session", "s2", "--json")
            assert json.loads(done.stdout)["accepted"] == 1
            await client.until(lambda c: _session(c, "s2").get("state") == "working")
            done = await report("-w", str(folder), "--state", "exited", "--crashed", "--session", "s2")
            await client.until(lambda c: _session(c, "s2").get("crashed") is True)
            done = await report("-w", str(home), "--state", "idle")
            assert done.returncode == 1
            assert "no workspace that treewire follows" in done.stderr
            os.kill(world.gateway.process.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                done = await report("--stdin", "claude", input=json.dumps({**STOP, "cwd": str(folder)}))
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
                assert time.monotonic() - began < 10
            finally:
                os.kill(world.gateway.process.pid, signal.SIGCONT)

    runs(world, test)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--state working"),
        (("--state", "sleeping"), "starting"),
        (("--state", "idle", "--kind", "plan"), "waiting"),
        (("--state", "idle", "--crashed"), "exited"),
        (("--state", "idle", "--session", "../s1"), "not an id"),
        (("--state", "idle", "-w", "/nowhere/at/all"), "--project"),
        (("--state", "idle", "{}"), "--stdin"),
        (("--stdin", "emacs"), "claude"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused_and_says_what_would(
    tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    done = treewire(tmp_path, "report", *arguments)
    assert done.returncode == 2
    assert word in done.stderr


def test_where_nothing_runs_a_report_says_so_and_a_hook_says_nothing(tmp_path: Path) -> None:
    done = treewire(tmp_path, "report", "--state", "idle", cwd=tmp_path)
    assert done.returncode == 3
    assert "treewire up" in done.stderr
    (tmp_path / "url").write_text("http://127.0.0.1:1/\n")
    (tmp_path / "token").write_text("secret\n")
    assert treewire(tmp_path, "report", "--state", "idle", cwd=tmp_path).returncode == 3
    for text in (json.dumps({**STOP, "cwd": "/"}), "not JSON", ""):
        done = treewire(tmp_path, "report", "--stdin", "claude", input=text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_is_installed_reports_for_every_agent_as_the_agent_would_run_it(world: World, tmp_path: Path) -> None:
    """The command of each hook through a shell, `notify` without one, and what Claude Code posts by itself."""

    async def test(world: World) -> None:
        folder = await _followed(world)
        home = world.settings.home
        env = {**environment(), "HOME": str(tmp_path)}
        for name in ("claude", "codex", "gemini"):
            done = await asyncio.to_thread(treewire, home, "hooks", "install", name, "--json", env=env)
            assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "installed"), done.stderr
        done = await asyncio.to_thread(treewire, home, "hooks", "status", "--json", env=env)
        assert [(one["agent"], one["state"]) for one in json.loads(done.stdout)] == [
            ("claude", "installed"),
            ("codex", "installed"),
            ("gemini", "installed"),
        ]
        files = {"claude": ".claude/settings.json", "codex": ".codex/hooks.json", "gemini": ".gemini/settings.json"}
        asks = {"claude": "PermissionRequest", "codex": "PermissionRequest", "gemini": "Notification"}
        async with world.client() as client:
            for name, file in files.items():
                hooks = json.loads((tmp_path / file).read_text())["hooks"]
                [hook] = hooks[asks[name]][0]["hooks"]
                said = {"session_id": "s1", "cwd": str(folder), "hook_event_name": asks[name]}
                said |= {"tool_name": "Bash", "tool_input": {"command": "x" * 300_000}}
                said |= {"notification_type": "ToolPermission"}
                done = await asyncio.to_thread(_shell, hook["command"], json.dumps(said))
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
                await client.until(lambda c, n=name: _session(c, f"{n}-s1").get("waiting_for") == "permission")
            import tomllib

            notify = tomllib.loads((tmp_path / ".codex/config.toml").read_text())["notify"]
            told = json.dumps({"type": "agent-turn-complete", "thread-id": "s1", "cwd": str(folder)})
            done = await asyncio.to_thread(subprocess.run, [*notify, told], stdin=subprocess.DEVNULL, timeout=30)
            assert done.returncode == 0
            await client.until(lambda c: _session(c, "codex-s1").get("state") == "idle")
            # By itself: the address, the header and the body as Claude Code would send them.
            done = await asyncio.to_thread(
                treewire, home, "hooks", "install", "claude", "--via", "http", env={**env, TOKEN: world.token}
            )
            assert done.returncode == 0, done.stderr
            hooks = json.loads((tmp_path / files["claude"]).read_text())["hooks"]
            [hook] = hooks["Stop"][0]["hooks"]
            headers = {key: value.replace(f"${TOKEN}", world.token) for key, value in hook["headers"].items()}
            said = {"session_id": "s1", "cwd": str(folder), "hook_event_name": "Stop", "last_assistant_message": "x"}
            async with world.http.post(hook["url"], json=said, headers=headers) as answer:
                assert answer.status in (202, 204)
                assert await answer.read() == b""
            await client.until(lambda c: _session(c, "claude-s1").get("state") == "idle")
        for name in files:
            done = await asyncio.to_thread(treewire, home, "hooks", "uninstall", name, env=env)
            assert done.returncode == 0, done.stderr
        assert list(tmp_path.iterdir()) == []

    runs(world, test)


def _shell(command: str, text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], input=text, capture_output=True, text=True, timeout=30)


def test_the_command_of_a_hook_never_fails_whatever_became_of_treewire(tmp_path: Path) -> None:
    env = {**environment(), "HOME": str(tmp_path)}
    home = tmp_path / "gone"
    done = treewire(home, "hooks", "install", "claude", "--via", "command", env=env)
    assert done.returncode == 0, done.stderr
    [hook] = json.loads((tmp_path / ".claude/settings.json").read_text())["hooks"]["Stop"][0]["hooks"]
    told = json.dumps({**STOP, "cwd": "/"})
    for command in (hook["command"], hook["command"].replace(sys.executable, "/nowhere/python")):
        for text in (told, "not JSON", "x" * 300_000):
            done = _shell(command, text)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # Somebody holds standard input open, or listens and never answers.
    began = time.monotonic()
    with subprocess.Popen(["/bin/sh", "-c", hook["command"]], stdin=subprocess.PIPE) as waiting:
        assert waiting.wait(20) == 0
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        home.mkdir(exist_ok=True)
        (home / "url").write_text(f"http://127.0.0.1:{silent.getsockname()[1]}/\n")
        (home / "token").write_text("secret\n")
        assert _shell(hook["command"], told).returncode == 0
    assert time.monotonic() - began < 15


def test_a_dry_run_shows_a_diff_and_changes_nothing_and_broken_settings_are_named(tmp_path: Path) -> None:
    env = {**environment(), "HOME": str(tmp_path)}
    home, file = tmp_path / "treewire", tmp_path / ".claude/settings.json"
    done = treewire(home, "hooks", "install", "claude", "--dry-run", env=env)
    assert "+++ " + str(file) in done.stdout
    assert '+    "Stop": [' in done.stdout
    assert list(tmp_path.iterdir()) == []
    file.parent.mkdir()
    file.write_text('{"model": "opus",}')
    for command in ("install", "uninstall"):
        done = treewire(home, "hooks", command, "claude", env=env)
        assert done.returncode == 1
        assert f"{file} is not valid JSON" in done.stderr
        assert file.read_text() == '{"model": "opus",}'
    done = treewire(home, "hooks", "status", "claude", env=env)
    assert done.returncode == 0
    assert "claude: broken" in done.stdout
    assert treewire(home, "hooks", "install", "codex", "--via", "http", env=env).returncode == 2
    file.write_text('{"model": "opus"}\n')
    assert treewire(home, "hooks", "install", "claude", env=env).returncode == 0
    done = treewire(home, "hooks", "uninstall", "claude", "--dry-run", "--json", env=env)
    told = json.loads(done.stdout)
    assert (told["state"], told["changed"]) == ("installed", [str(file)])
    assert told["diff"][str(file)].endswith('+{"model": "opus"}\n')
    if os.getuid() != 0:
        file.parent.chmod(0o500)
        done = treewire(home, "hooks", "uninstall", "claude", env=env)
        file.parent.chmod(0o700)
        assert "cannot write" in done.stderr
    assert treewire(home, "hooks", "uninstall", "claude", env=env).returncode == 0
    assert file.read_text() == '{"model": "opus"}\n'
