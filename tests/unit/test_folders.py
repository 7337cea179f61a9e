"""A watch over folders: what it tells, and that it does nothing while nothing is to be done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources.folders import Folders


@contextlib.asynccontextmanager
async def watching(*paths: Path) -> AsyncIterator[tuple[Folders, set[str]]]:
    touched: set[str] = set()
    folders = Folders(touched.update, lambda: None)
    folders.watch(str(path) for path in paths)
    work = asyncio.create_task(folders.run())
    try:
        yield folders, touched
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_burst_is_gathered_without_the_loop_being_woken_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    listen, woken = loop.add_reader, []

    def counted(fd: Any, callback: Any, *args: Any) -> None:
        def called() -> None:
            woken.append(fd)
            callback(*args)

        listen(fd, called)

    monkeypatch.setattr(loop, "add_reader", counted)
    async with watching(tmp_path) as (_, touched):
        for n in range(5):
            path = tmp_path / f"t{n}"
            path.write_text("x")
            await until(lambda p=path: str(p) in touched)
    assert 1 <= len(woken) <= 10  # of each burst once, and of the end of one that was cut in two


async def test_a_folder_that_goes_and_comes_back_is_watched_again_once_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    async with watching(tmp_path, folder) as (folders, touched):
        folder.rmdir()
        await until(lambda: str(folder) in touched)
        assert not folders.watch([str(tmp_path), str(folder)])  # not there: left out
        folder.mkdir()
        assert folders.watch([str(tmp_path), str(folder)])
        (folder / "1.json").write_text("{}")
        await until(lambda: str(folder / "1.json") in touched)
