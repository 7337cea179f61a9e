"""The directories a deployment lives in: private, ours, and short enough for unix sockets."""

from __future__ import annotations

import os
import stat
from pathlib import Path

# sun_path holds 108 bytes; the longest name put into a run directory is supervisord's own temporary socket.
_LONGEST_PATH = 100
_LONGEST_NAME = len("/supervisord.sock.4194304")


class OperatorError(Exception):
    """Something only the operator can put right. The message is one sentence that says what to do."""


def fits_sockets(directory: Path) -> bool:
    """Whether every socket in this directory has a name that the kernel takes."""
    return len(os.fsencode(directory)) + _LONGEST_NAME < _LONGEST_PATH


def fallback_run_dir(home: Path) -> Path:
    """A short directory that belongs to this home alone."""
    import hashlib  # brings OpenSSL along, which most homes have no need for

    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    name = f"treewire-{os.getuid()}-{digest}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and fits_sockets(Path(runtime) / name):
        return Path(runtime) / name
    return Path("/tmp") / name  # noqa: S108 - `private_dir` refuses whatever somebody else put there


def private_dir(path: Path) -> Path:
    """Create the directory if need be, and leave it with mode 0700.

    Raises `OperatorError` where it is a symbolic link, not a directory, or another user's: whoever owns it could put
    sockets of his own into it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        found = os.lstat(path)
    except OSError as error:
        raise OperatorError(f"cannot create {path}: {error.strerror}; choose another --home") from None
    if stat.S_ISLNK(found.st_mode):
        raise OperatorError(f"{path} is a symbolic link, and a private directory may not be one; remove it")
    if not stat.S_ISDIR(found.st_mode):
        raise OperatorError(f"{path} is not a directory; remove it or choose another --home")
    if found.st_uid != os.getuid():
        raise OperatorError(f"{path} belongs to uid {found.st_uid} and not to you; remove it or choose another --home")
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)
    return path
