"""Whose points are spent: the token, as gh finds it, and the only address that it is sent to."""

from __future__ import annotations

import asyncio
import os
from typing import Final
from urllib.parse import urlsplit

GH_S: Final = 5.0
PUBLIC: Final = "github.com"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def endpoint(host: str, api: str) -> str:
    """The address of the API. Raises `ValueError` for one that the token must not be sent to."""
    url = api or ("https://api.github.com/graphql" if host == PUBLIC else f"https://{host}/api/graphql")
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"github.api = {url!r} would send the token in the clear: write it with https")
    return url


async def token(host: str) -> str:
    """As gh finds it: from the environment, else what gh itself has; "" if there is none.

    A token of github.com is not for another host.
    """
    names = ("GH_TOKEN", "GITHUB_TOKEN") if host == PUBLIC else ("GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN")
    for name in names:
        if found := os.environ.get(name, "").strip():
            return found
    return await _of_gh(host)


async def _of_gh(host: str) -> str:
    try:
        child = await asyncio.create_subprocess_exec(
            "gh", "auth", "token", "--hostname", host,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
        )  # fmt: skip
    except OSError:
        return ""
    try:
        out, _ = await asyncio.wait_for(child.communicate(), GH_S)
    except TimeoutError:
        child.kill()
        await child.wait()
        return ""
    found = out.decode(errors="replace").strip()
    return found if child.returncode == 0 and found.isascii() and found.isprintable() else ""
