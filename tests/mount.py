"""A file system of our own, the mirror of a directory, that answers until it is told not to: a mount that died.

Run as a program it serves ``SOURCE MOUNTPOINT``. While the file ``SOURCE.dead`` is there, it takes each request and
answers none, so that whoever asked waits in the kernel where no signal reaches him.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE_S = 20.0


@contextlib.contextmanager
def mounted(source: Path, at: Path) -> Iterator[Path]:
    """The mount; make the file that is yielded to let it die. Raises `OSError` where nothing can be mounted."""
    if not os.path.exists("/dev/fuse") or os.geteuid():
        raise OSError(errno.EPERM, "only root mounts here, and only where the kernel has FUSE")
    dead = source.with_name(source.name + ".dead")
    said = source.with_name(source.name + ".said")
    with said.open("wb") as out:
        server = subprocess.Popen([sys.executable, "-m", "tests.mount", source, at], stdout=out, stderr=out)
    try:
        until = time.monotonic() + PATIENCE_S
        while not os.path.ismount(at):
            if server.poll() is not None or time.monotonic() > until:
                raise OSError(errno.EIO, f"it was not mounted: {said.read_text()[-400:]}")
            time.sleep(0.02)
        yield dead
    finally:
        server.kill()  # which lets go whoever waits
        server.wait()
        umount = shutil.which("umount")
        if umount is not None:
            subprocess.run([umount, "-l", at], capture_output=True, check=False)
        dead.unlink(missing_ok=True)


def serve(source: str, at: str) -> None:
    import mfusepy

    def there(path: str) -> str:
        while os.path.exists(source + ".dead"):
            time.sleep(0.05)
        return source + path

    class Mirror(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = os.lstat(there(path))
            names = "st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino"
            times = {f"st_{which}time": getattr(found, f"st_{which}time_ns") for which in "amc"}
            return {name: getattr(found, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
            # A name without an inode is to the C library an empty place in the directory, and nobody is told of it.
            names = [".", *os.listdir(there(path))]
            return [(name, {"st_ino": os.lstat(f"{source}{path}/{name}").st_ino}, 0) for name in names]

        def readlink(self, path: str) -> str:
            return os.readlink(there(path))

        def access(self, path: str, amode: int) -> int:
            return 0 if os.access(there(path), amode) else -errno.EACCES

        def open(self, path: str, flags: int) -> int:
            return os.open(there(path), flags)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            there(path)
            return os.pread(fh, size, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(
        Mirror(),
        at,
        foreground=True,
        nothreads=False,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
    )


if __name__ == "__main__":
    serve(*sys.argv[1:])
