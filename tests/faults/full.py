"""A whole deployment whose home is on a small file system that gets full: `python -m tests.faults.full HOME WORKTREES`.

In a mount namespace of its own, where it mounts that file system. What does not hold is an `AssertionError`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from io import FileIO
from pathlib import Path
from typing import Final

from tests.faults.record import processes
from tests.faults.whole import Whole, whole

SIZE: Final = "48m"
PIECE: Final = 4096
BEATS: Final = 6
KILLED: Final = ("worker-0", "worker-1", "dispatcher", "reconciler", "sources")


def fill(home: Path) -> Path:
    """Until not a byte more can be written."""
    ballast = home / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for piece in (1 << 20, PIECE):
            while _written(file, piece):
                pass
    assert os.statvfs(home).f_bavail == 0
    return ballast


def _written(file: FileIO, size: int) -> bool:
    try:
        file.write(b"x" * size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


async def check(all_: Whole) -> None:
    home = all_.settings.home
    async with all_.client() as client:
        await all_.steady(client)
        await all_.event(client)
        before, lines = processes(all_.settings), all_.lines(client)
        ballast = fill(home)

        assert (await all_.post(client))[0] == 503, "what cannot be kept is not accepted"
        all_.write(1)
        await all_.proven(client, BEATS)
        async with all_.client() as other:
            await other.until(lambda c: c.version == client.version)
            await all_.proven(other)
        assert processes(all_.settings) == before, "nobody fell"
        assert all_.lines(client) in (lines, lines + 1), "a look that fails makes no numbers"
        for name in KILLED:
            os.kill(before[name], signal.SIGKILL)
        await all_.until(
            lambda: all(processes(all_.settings).get(name, before[name]) != before[name] for name in KILLED),
            "whoever is killed to be there anew",
        )
        await all_.proven(client, BEATS)
        assert len(client.state) == 3
        assert all("git" in entry for entry in client.state.values())

        ballast.unlink()
        await all_.until(lambda: not all_.ill(), "all to be well again")
        await client.until(lambda c: all_.lines(c) == lines + 1)
        await all_.event(client)
        await all_.edit(client, 2)
        await all_.proven(client)
        assert client.mismatches == []
        kept = {name: pid for name, pid in before.items() if name not in KILLED}
        assert kept.items() <= processes(all_.settings).items()


def main(home: Path, parent: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(home)], check=True)
    with whole(home, parent, silent_s=20) as all_:
        try:
            asyncio.run(check(all_))
        except BaseException:
            print(all_.ill(), file=sys.stderr)
            for log in sorted(all_.settings.log_dir.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
