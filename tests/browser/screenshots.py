"""`python -m tests.browser.screenshots FOLDER`: pictures of the board's main states, on the page and in a terminal.

The board is the one of `treewire demo --still`: real worktrees, and a scene that is the same each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page, expect

from benchmarks.browser import chromium
from benchmarks.deployment import deployment, home
from pipeline.cli.board.app import BoardApp
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings
from tests.browser.site import WAIT_MS

WIDE: Final = {"width": 1440, "height": 900}
TERMINAL: Final = (132, 40)
PAPER: Final = {"width": 1200, "height": 800}
NARROW: Final = {"width": 390, "height": 844}
DRAWER: Final = "fix CI"  # of which there is much to tell
MOST_BYTES: Final = 250_000


@contextlib.contextmanager
def demo() -> Iterator[tuple[Settings, str]]:
    """The still scene; yields its settings and the link that signs in."""
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--still", "--json", "--port", "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        settings = Settings.load(Path(told["home"]), environ={})
        yield settings, f"{told['url']}#token={settings.token_path.read_text().strip()}"
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(60)


@contextlib.contextmanager
def stopped(settings: Settings, name: str) -> Iterator[None]:
    """A process that hangs."""
    pid = next(beat.pid for beat in read_beats(settings.run_dir) if beat.name == name)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def visit(browser: Browser, link: str, size: Any, scheme: Any, hold: str = "") -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    if hold:
        page.route(hold, lambda _: None)  # never answered
    page.goto(link)
    expect(page.locator("#connection")).to_have_text("live", timeout=WAIT_MS)
    return page


def board(browser: Browser, link: str, size: Any, scheme: Any) -> Page:
    page = visit(browser, link, size, scheme)
    page.locator(".card .open").locator("visible=true").first.wait_for()
    page.locator(".verified").wait_for()
    return page


def shoot(folder: Path, name: str, page: Page) -> None:
    path = folder / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path}  {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} is larger than {MOST_BYTES} bytes: show less in it")


async def drawn(url: str, token: str) -> str:
    """The board in a terminal, as a drawing."""
    app = BoardApp(url, token)
    async with app.run_test(size=TERMINAL) as pilot:
        async with asyncio.timeout(WAIT_MS / 1000):
            while not (app.live.of("") and all(one.is_verified for one in app.live.of("")) and app.arranged.total):
                await asyncio.sleep(0.05)
        await pilot.press("n", "n", "n")
        await pilot.pause()
        return app.export_screenshot()


def terminal(browser: Browser, url: str, token: str) -> Page:
    with ThreadPoolExecutor(1) as pool:  # this thread's loop is the browser's
        drawing = pool.submit(asyncio.run, drawn(url, token)).result()
    page = browser.new_page(viewport=PAPER)
    page.set_content(f"<style>body {{ margin: 0 }} svg {{ display: block; width: 100vw }}</style>{drawing}")
    box = page.locator("svg").bounding_box()
    assert box is not None
    page.set_viewport_size({**PAPER, "height": int(box["height"])})
    return page


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        with demo() as (settings, link):
            light, dark = (board(browser, link, WIDE, scheme) for scheme in ("light", "dark"))
            shoot(folder, "board", light)
            shoot(folder, "board-dark", dark)
            narrow = board(browser, link, NARROW, "dark")
            shoot(folder, "board-narrow", narrow)
            for page, name in ((light, "drawer"), (narrow, "drawer-narrow")):
                page.locator(".card", has_text=DRAWER).locator(".open").first.click()
                page.locator(".drawer dl").first.wait_for()
                shoot(folder, name, page)
            url, _, fragment = link.partition("#token=")
            shoot(folder, "terminal", terminal(browser, url, fragment))
            shoot(folder, "loading", visit(browser, link, WIDE, "dark", hold="**/v1/projects"))
            with stopped(settings, "aggregator"):
                expect(dark.locator("#connection")).to_have_text("stale", timeout=WAIT_MS)
                dark.wait_for_timeout(2000)
                shoot(folder, "stale", dark)
        with home() as settings, contextlib.chdir(settings.home), deployment(settings) as url:
            token = settings.token_path.read_text().strip()
            page = visit(browser, f"{url}#token={token}", WIDE, "light")
            page.locator(".empty").wait_for()
            page.locator(".notices").wait_for(state="detached")
            shoot(folder, "empty", page)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("say where to put the pictures: python -m tests.browser.screenshots FOLDER")
    main(Path(sys.argv[1]).absolute())
