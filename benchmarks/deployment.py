"""Real processes for benchmarks and journeys: one of the pipeline, or a whole deployment, in a fresh home."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipeline.cli.deployment import holder
from pipeline.runtime.settings import Settings


def until(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Wait for a condition; returns how long it took. Raises `TimeoutError` with the words for it."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.005)
    return time.perf_counter() - began


@contextlib.contextmanager
def home() -> Iterator[Settings]:
    directory = tempfile.mkdtemp(prefix="tw-")
    try:
        yield Settings.load(Path(directory), environ={})
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def process(name: str, settings: Settings) -> Iterator[psutil.Process]:
    """One process of the pipeline, without a supervisor."""
    command = [sys.executable, "-m", "pipeline.cli", "run", name, "--home", str(settings.home)]
    with (settings.home / f"{name}.out").open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(10)


@contextlib.contextmanager
def deployment(settings: Settings, *projects: Path, **environment: str) -> Iterator[str]:
    """Everything under supervisord; yields the gateway's URL when it is ready."""
    run = [sys.executable, "-m", "pipeline.cli"]
    where = ["--home", str(settings.home)]
    env = {**os.environ, **environment}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling at each start would be measured as memory and time
    up = [*run, "up", *where, "--port", "0", "-d", *map(str, projects)]
    try:
        done = subprocess.run(up, env=env, capture_output=True, text=True, check=False)
        if done.returncode:  # it may go on trying
            raise RuntimeError(f"treewire up failed:\n{done.stdout}{done.stderr}")
        yield settings.url_path.read_text().strip()
    finally:
        subprocess.run([*run, "down", *where], env=env, capture_output=True, check=False)


def members(settings: Settings) -> list[psutil.Process]:
    """Every process of a running deployment: supervisord and all below it."""
    pid = holder(settings.run_dir)
    if pid is None:
        raise RuntimeError(f"nothing runs for {settings.home}")
    supervisord = psutil.Process(pid)
    return [supervisord, *supervisord.children(recursive=True)]


def get(url: str, token: str) -> bytes:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def post(url: str, token: str, body: object) -> None:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def worktrees(parent: Path, count: int, files: int) -> Path:
    """A repository with `count` linked worktrees of `files` files each; returns the repository."""
    repository = parent / "project"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "bench" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def git(*args: str) -> None:
        subprocess.run(["git", "-C", str(repository), *args], env=env, check=True, capture_output=True)

    repository.mkdir(parents=True)
    git("init", "-q", "-b", "main")
    for n in range(files):
        path = repository / f"dir{n % 10}" / f"file{n}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"line {n}\n" * 20)
    git("add", "-A")
    git("commit", "-qm", "start")
    for n in range(count):
        git("worktree", "add", "-q", "-b", f"task-{n}", str(parent / f"task-{n}"))
    return repository
