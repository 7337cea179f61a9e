"""The board in Chromium while workspaces change: long tasks, dropped frames, and the distance of two frames.

Events go the whole way: posted to a real deployment, through catalog, aggregator and gateway to the page. Most change
numbers on a card; some change its state, so that it moves to another column. Measured is in the page: `longtask`
entries and the gaps between animation frames. Beside it stands the same page while nothing happens: what the host,
its software rendering and its other work cost by themselves.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import Browser, Page

from benchmarks import figures
from benchmarks.browser import chromium
from benchmarks.deployment import deployment, home, post, until, worktrees
from benchmarks.latency import PROJECT, births

RATE: Final = 50
MOVES: Final = 5  # one event in so many moves a card
BATCH_S: Final = 0.1
SECONDS: Final = 5.0
RUNS: Final = 3
FRAME_MS: Final = 1000 / 60
SIZES: Final = (300, 2000)  # of the first all cards are rendered
ROOM: Final = "4000"
BORN_S: Final = 60.0

WATCH: Final = """
globalThis.seen = { long: [], frames: [], renders: 0 };
const tasks = new PerformanceObserver((list) => seen.long.push(...list.getEntries().map((one) => one.duration)));
tasks.observe({ type: "longtask" });
let last = 0;
requestAnimationFrame(function frame(now) {
  if (last) seen.frames.push(now - last);
  last = now;
  requestAnimationFrame(frame);
});
"""
# Ages are text that a timer writes, and are no rendering.
RENDERS: Final = """
() => new MutationObserver(() => { seen.renders += 1; }).observe(document.getElementById("root"),
  { subtree: true, childList: true, attributes: true })
"""


class _Agents(threading.Thread):
    """Posts events at `RATE` until it is told to stop."""

    def __init__(self, url: str, token: str, size: int) -> None:
        super().__init__(daemon=True)
        self._url, self._token, self._events = url, token, _events(size)
        self._done = threading.Event()
        self.posted = 0

    def run(self) -> None:
        began = time.perf_counter()
        while not self._done.is_set():
            due = int((time.perf_counter() - began) * RATE) - self.posted
            if due > 0:
                post(f"{self._url}v1/events", self._token, [next(self._events) for _ in range(due)])
                self.posted += due
            self._done.wait(BATCH_S)

    def stop(self) -> None:
        self._done.set()
        self.join()


def _events(size: int) -> Iterator[dict[str, Any]]:
    n = 0
    while True:
        workspace = f"w{(n * 7) % size}"
        fields: dict[str, Any]
        if n % MOVES == 0:
            moved = n // MOVES % 2
            group, fields = (
                "session:s1",
                {"provider": "claude", "model": "opus-4.1", "state": ("working", "idle")[moved]},
            )
        else:
            group, fields = "run", {"state": "running", "port": 1024 + n % 60_000}
        yield {"project": PROJECT, "workspace": workspace, "group": group, "fields": fields, "source": "bench"}
        n += 1


def _watched(page: Page, seconds: float) -> dict[str, Any]:
    page.evaluate("Object.assign(seen, { long: [], frames: [], renders: 0 })")
    page.wait_for_timeout(seconds * 1000)
    seen: dict[str, Any] = page.evaluate("seen")
    return seen


def _tell(name: str, runs: list[dict[str, Any]], goals: bool) -> None:
    dropped = [float(sum(max(0, round(gap / FRAME_MS) - 1) for gap in run["frames"])) for run in runs]
    per_second = [run["renders"] / SECONDS for run in runs]
    figures.line(
        f"{name}: long tasks (over 50 ms)", [float(len(run["long"])) for run in runs], "", "0" if goals else ""
    )
    figures.line(f"{name}: longest task", [max(run["long"], default=0.0) for run in runs], "ms")
    figures.line(f"{name}: frames dropped in {SECONDS:g} s", dropped, "", "0" if goals else "")
    figures.line(f"{name}: frame interval p50", [figures.percentile(run["frames"], 0.5) for run in runs], "ms")
    figures.line(f"{name}: frame interval p99", [figures.percentile(run["frames"], 0.99) for run in runs], "ms")
    figures.line(f"{name}: changes of the page", per_second, "/s")


def _render_all(page: Page) -> None:
    """Cards are rendered as one scrolls to them: go to the end of the longest column, and back."""
    more = page.locator(".column > .more").first
    while more.count():
        more.evaluate("button => button.click()")  # newborn cards still move it, and a real click waits for rest
    page.evaluate("scrollTo(0, 0)")


def _measure(browser: Browser, size: int) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tw-repo-") as parent,
        home() as settings,
        deployment(settings, worktrees(Path(parent), 0, 3), TREEWIRE_STORE__MAX_ENTRIES=ROOM) as url,
    ):
        token = settings.token_path.read_text().strip()
        births(url, token, PROJECT, size)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.add_init_script(WATCH)
        began = time.perf_counter()
        page.goto(f"{url}#token={token}")
        page.locator(".card").first.wait_for()
        figures.line(f"{size} workspaces: from the address to the cards", [(time.perf_counter() - began) * 1000], "ms")
        held = page.locator("#project option").nth(1)
        until(lambda: f"({size + 1:,})" in held.inner_text(), BORN_S, "every workspace on the board")
        if size == SIZES[0]:
            _render_all(page)
        page.evaluate(RENDERS)
        _watched(page, 2.0)
        _tell(f"{size} workspaces, quiet", [_watched(page, SECONDS) for _ in range(RUNS)], goals=False)
        agents = _Agents(url, token, size)
        agents.start()
        try:
            _watched(page, 2.0)
            runs = [_watched(page, SECONDS) for _ in range(RUNS)]
        finally:
            agents.stop()
        _tell(f"{size} workspaces, {RATE} changes/s", runs, goals=size == SIZES[0])
        page.close()


def main() -> None:
    figures.heading("board: one page in headless Chromium, software rendering; whole deployment")
    with chromium() as browser:
        for size in SIZES:
            _measure(browser, size)


if __name__ == "__main__":
    main()
