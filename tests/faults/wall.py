"""A wall clock that is set while processes run. Their other clocks, and all that waits, stay as they are.

The processes load a small library before all others (`wall.c`), which the C compiler makes here. libfaketime would be
the ready one, but what it does to waits for a point of the monotonic clock makes `time.sleep` fail (0.9.10). Times that
the kernel writes, as those of files, do not step along, which a real step has them do.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("wall.c")
HOUR_S: Final = 3600
NO_COMPILER: Final = "there is no C compiler: install gcc or clang"


class NoCompiler(Exception):
    """What is loaded into the processes cannot be made here."""


class Wall:
    """`environment`: of whoever shall go by it."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("cc"):
            raise NoCompiler(NO_COMPILER)
        self.seconds = 0
        self._offset = folder / "wall-offset"
        self._offset.write_bytes(struct.pack("q", 0))
        library = folder / "wall.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE)], check=True)
        self.environment = {"LD_PRELOAD": str(library), "WALL_OFFSET": str(self._offset)}

    def step(self, seconds: int) -> None:
        """Set it forward, or back."""
        self.seconds += seconds
        with self._offset.open("r+b") as file:  # the same file: it is mapped
            file.write(struct.pack("q", self.seconds))
