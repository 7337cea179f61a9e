"""Which GitHub repository a branch belongs to: git's configuration as text, and the forms that a remote's URL has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

ORIGIN: Final = "origin"
UPSTREAM: Final = "upstream"
_SECTION = re.compile(r'\[\s*([A-Za-z0-9.-]+)\s*(?:"((?:[^"\\]|\\.)*)")?\s*\]')
_KEY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(?:=\s*(.*))?$")
_SCP = re.compile(r"(?:[^@/:]+@)?([A-Za-z0-9.-]+):(?!/)(.+)$")
_REPOSITORY = re.compile(r"/*([A-Za-z0-9][A-Za-z0-9_-]*)/([A-Za-z0-9._-]+?)(?:\.git)?/*$")
_ESCAPES = {"n": "\n", "t": "\t", "b": "\b"}

# (section, subsection, key) → its values in order; section and key in small letters
Config = dict[tuple[str, str, str], list[str]]


class Pushed(NamedTuple):
    """Where a branch goes: the repository that its pull requests are in, the one that it is pushed to, its name there.

    `remote`: the remote by which it gets there.
    """

    repo: str
    head: str
    name: str
    remote: str


def parse(*texts: str) -> Config:
    """Configuration files, later ones over former ones. Lines that git would refuse are passed over."""
    config: Config = {}
    for text in texts:
        section, sub = "", ""
        for line in _lines(text):
            if (head := _SECTION.match(line)) is not None:
                section, sub = head[1].lower(), re.sub(r"\\(.)", r"\1", head[2] or "")
                line = line[head.end() :].strip()
            if section and (found := _KEY.match(line)) is not None:
                value = "true" if found[2] is None else _value(found[2])
                config.setdefault((section, sub, found[1].lower()), []).append(value)
    return config


def _lines(text: str) -> Iterator[str]:
    """Each with those that go on from it."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if (len(pending) - len(pending.rstrip("\\"))) % 2:
            pending = pending[:-1]
            continue
        if (whole := pending.strip()) and whole[0] not in "#;":
            yield whole
        pending = ""


def _value(text: str) -> str:
    """Without quotes, escapes, and what comes after a comment sign."""
    out: list[str] = []
    quoted, kept = False, 0
    characters = iter(text)
    for c in characters:
        if c == '"':
            quoted = not quoted
            kept = len(out)
        elif c == "\\":
            escaped = next(characters, "")
            out.append(_ESCAPES.get(escaped, escaped))
            kept = len(out)
        elif c in "#;" and not quoted:
            break
        else:
            out.append(c)
            if quoted or not c.isspace():
                kept = len(out)
    return "".join(out[:kept])


def repository(url: str, host: str) -> str | None:
    """``owner/name`` of a URL that leads to this GitHub; ``None`` for any other. Forms: https, ssh, git, scp-like."""
    if "://" in url:
        try:
            parts = urlsplit(url)
            there, path = parts.hostname or "", parts.path
        except ValueError:
            return None
        if parts.scheme not in ("https", "http", "ssh", "git", "git+ssh", "ssh+git"):
            return None
    elif (scp := _SCP.match(url)) is not None:
        there, path = scp[1], scp[2]
    else:
        return None
    if there.lower() not in (host.lower(), f"ssh.{host}".lower(), f"www.{host}".lower()):
        return None
    found = _REPOSITORY.match(path)
    return None if found is None else f"{found[1]}/{found[2]}"


def pushed(config: Config, branch: str, host: str) -> Pushed | None:
    """Where this local branch goes, as git and gh would have it; ``None`` if that is no repository of this GitHub."""
    names = sorted({sub for section, sub, key in config if section == "remote" and key == "url"})
    repos = {name: repo for name in names if (repo := _repo(config, name, host)) is not None}
    if not repos:
        return None
    tracked = _last(config, "branch", branch, "remote")
    asked = (
        _last(config, "branch", branch, "pushremote"),
        _last(config, "remote", "", "pushdefault"),
        tracked,
        ORIGIN,
        *repos,
    )
    remote = next(name for name in asked if name in repos)
    resolved = next((name for name in repos if _last(config, "remote", name, "gh-resolved") == "base"), None)
    elsewhere = [_last(config, "remote", name, "gh-resolved") for name in repos]
    base = next((found for found in elsewhere if found and _REPOSITORY.match(found)), None)
    repo = base or repos[resolved or (UPSTREAM if UPSTREAM in repos else remote)]
    name = branch
    if _last(config, "push", "", "default") in ("upstream", "tracking") and tracked == remote:
        name = (_last(config, "branch", branch, "merge") or branch).removeprefix("refs/heads/")
    return Pushed(repo, repos[remote], name, remote)


def _repo(config: Config, remote: str, host: str) -> str | None:
    url = _last(config, "remote", remote, "url")
    return None if not url else repository(_instead(config, url), host)


def _instead(config: Mapping[tuple[str, str, str], list[str]], url: str) -> str:
    """The URL as ``url.<base>.insteadOf`` has it rewritten: the longest that fits."""
    fits = [
        (len(short), base + url[len(short) :])
        for (section, base, key), shorts in config.items()
        if section == "url" and key == "insteadof"
        for short in shorts
        if short and url.startswith(short)
    ]
    return max(fits)[1] if fits else url


def _last(config: Config, section: str, sub: str, key: str) -> str:
    return config.get((section, sub, key), [""])[-1]
