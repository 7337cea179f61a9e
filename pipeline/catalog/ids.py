"""Ids that are stable, readable, and tell no path."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Container
from hashlib import blake2b
from pathlib import Path
from typing import Final

MAX_SLUG: Final = 48


def slug(name: str) -> str:
    """Lower-case letters, digits, dots, underscores and dashes; never empty, starts with a letter or a digit."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9._]+", "-", plain).strip("-._")[:MAX_SLUG].rstrip("-._") or "x"


def fingerprint(path: str | Path) -> str:
    """Six hex digits that tell two folders of one name apart."""
    return blake2b(os.fsencode(path), digest_size=3).hexdigest()


def worktree_id(path: str | Path) -> str:
    """The id of the workspace at this path."""
    return f"{slug(os.path.basename(path))}-{fingerprint(path)}"


def project_id(path: str | Path, taken: Container[str]) -> str:
    """The folder's name; with its fingerprint only if another project has that name already."""
    short = slug(os.path.basename(path).removesuffix(".git"))
    return short if short not in taken else f"{short}-{fingerprint(path)}"


def shown(name: str | bytes) -> str:
    """A file or branch name as text that may be sent: what is no UTF-8 in it is replaced."""
    raw = os.fsencode(name) if isinstance(name, str) else name
    return "".join(c if c.isprintable() else "\ufffd" for c in raw.decode("utf-8", "replace"))
