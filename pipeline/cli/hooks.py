"""`treewire hooks`: make an agent report by itself, and leave its settings as they were when it shall not any more."""

from __future__ import annotations

import base64
import contextlib
import difflib
import hashlib
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import click
import msgspec
from msgspec import Struct

from pipeline.cli import graft, herald
from pipeline.cli.graft import Hook, Taken, Unfit
from pipeline.runtime.place import private_dir
from pipeline.runtime.settings import Settings

TOKEN: Final = "TREEWIRE_TOKEN"  # noqa: S105 - the name of a variable
TIMEOUT_S: Final = 3  # the most that Codex grants the hooks of a session's end
EVENTS: Final = {
    # Never WorktreeCreate: whoever has a hook for it makes the worktree in git's place.
    "claude": (
        *("SessionStart", "UserPromptSubmit", "PreToolUse", "PermissionRequest", "PostToolUse", "PostToolUseFailure"),
        *("Notification", "SubagentStart", "SubagentStop", "CwdChanged", "Stop", "StopFailure", "SessionEnd"),
    ),
    "codex": (
        *("SessionStart", "UserPromptSubmit", "PreToolUse", "PermissionRequest", "PostToolUse"),
        *("SubagentStart", "SubagentStop", "Stop", "Interrupt", "SessionEnd"),
    ),
    "gemini": (
        *("SessionStart", "BeforeAgent", "BeforeTool", "AfterTool", "Notification", "AfterAgent", "SessionEnd"),
    ),
}
AGENTS: Final = tuple(EVENTS)
NAMES: Final = {"claude": "Claude Code", "codex": "Codex", "gemini": "Gemini CLI"}
# What Claude Code runs as a command whatever else it may be.
COMMAND_ONLY: Final = frozenset({"SessionStart"})

Via = Literal["http", "command"]


class Change(NamedTuple):
    """What a file holds, and what it shall hold; ``None`` is no file."""

    path: Path
    before: bytes | None
    after: bytes | None


class Former(Struct, frozen=True):
    """What a file was before we came (base64; ``None``: it was not there), and the hash of what we made of it."""

    before: str | None
    after: str
    folder: bool = False  # we made the folder, too

    @property
    def content(self) -> bytes | None:
        return None if self.before is None else base64.b64decode(self.before)


class Agent:
    """One agent's settings, and our place in them."""

    def __init__(self, settings: Settings, name: str, via: Via | None = None) -> None:
        self.name, self._settings = name, settings
        self.comments = name == "gemini"
        self.json, self.toml = _files(name)
        self._record = settings.home / "hooks" / f"{name}.json"
        self._url = _address(settings) + f"v1/events/{name}"
        self.found = self._found()
        self.via: Via = via or self._via_now() or ("http" if name == "claude" and os.environ.get(TOKEN) else "command")

    # ── what there is, and what there should be ──────────────────────────────────────────────────

    def hooks(self) -> dict[str, Hook]:
        """Our hook for each event."""
        command: Hook = {"type": "command", "command": f"{shlex.join(self.argv())} 2>/dev/null || true  {graft.MARK}"}
        if self.name == "gemini":
            hook: Hook = {"name": "treewire", **command, "timeout": TIMEOUT_S * 1000}
            return dict.fromkeys(EVENTS[self.name], hook)
        command["timeout"] = TIMEOUT_S
        if self.via == "command":
            return dict.fromkeys(EVENTS[self.name], command)
        http = {
            "type": "http",
            "url": self._url,
            "headers": {"Authorization": f"Bearer ${TOKEN}"},
            "allowedEnvVars": [TOKEN],
            "timeout": TIMEOUT_S,
        }
        return {event: command if event in COMMAND_ONLY else http for event in EVENTS[self.name]}

    def argv(self) -> list[str]:
        """What carries a hook: as little of Python as that takes, since the agent waits for it."""
        return [sys.executable, "-I", "-S", herald.__file__, self.name, str(self._settings.home)]

    def ours(self, hook: Hook) -> bool:
        command, url = hook.get("command"), hook.get("url")
        if isinstance(command, str) and command.endswith(graft.MARK):
            return True
        return isinstance(url, str) and urlsplit(url).path == f"/v1/events/{self.name}"

    def state(self) -> str:
        """``installed``, ``absent``, or ``outdated`` for anything in between."""
        if not self.found and not self._notified():
            return "absent"
        wanted = {event: [hook] for event, hook in self.hooks().items()}
        return "installed" if self.found == wanted and self._notified() != "other" else "outdated"

    def notes(self) -> list[str]:
        """What the user has to know, or to do himself."""
        told = []
        if self.via == "http" and not os.environ.get(TOKEN):
            told.append(f'Start the agent with: export {TOKEN}="$(cat {shlex.quote(str(self._settings.token_path))})"')
        if self.name == "codex":
            told.append("Codex asks once whether these hooks are trusted: say so in /hooks.")
            if isinstance(self._with_notify(), Taken):
                told.append(f"{self.toml} has a `notify` of its own, which stays; the hooks tell the same.")
        return told

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    def install(self) -> list[Change]:
        """What makes it report. Raises `click.ClickException` for settings that cannot be read."""
        if self.state() == "installed":
            return []
        changes = [self._change(self.json, lambda text: graft.put(text, self.hooks(), self.comments))]
        if self.toml is not None:
            told = self._with_notify()
            if not isinstance(told, Taken):
                changes.append(self._change(self.toml, lambda text: str(graft.notify(text, self.argv()))))
        return [change for change in changes if change.before != change.after]

    def uninstall(self) -> list[Change]:
        """What takes our part out again; of a file that nobody changed since, to the last byte."""
        changes = []
        former = self._former()
        for path in (self.json, self.toml):
            if path is None or (now := _read(path)) is None:
                continue
            base = self._base(path, now, former.get(str(path)))
            changes.append(Change(path, now, base))
        return [change for change in changes if change.before != change.after]

    def write(self, changes: list[Change], *, installing: bool) -> None:
        """Write them, each whole or not at all; and beforehand what it takes to undo them."""
        former = self._former()
        if installing:
            for change in changes:
                known = former.get(str(change.path))
                base = None if change.before is None else self._base(change.path, change.before, known)
                assert change.after is not None
                former[str(change.path)] = Former(
                    None if base is None else base64.b64encode(base).decode(),
                    _hash(change.after),
                    not change.path.parent.exists() or (known is not None and known.folder),
                )
            self._remember(former)
        for change in changes:
            _write(change)
        if not installing:
            for change in changes:
                known = former.pop(str(change.path), None)
                if change.after is None and known is not None and known.folder:
                    with contextlib.suppress(OSError):  # there is something else in it now
                        change.path.parent.rmdir()
            self._remember(former)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _found(self) -> dict[str, list[Hook]]:
        with _blamed(self.json):
            return graft.present(_text(self.json, _read(self.json)), self.ours, self.comments)

    def _via_now(self) -> Via | None:
        kinds = {hook.get("type") for hooks in self.found.values() for hook in hooks}
        return "http" if "http" in kinds else "command" if kinds else None

    def _notified(self) -> str:
        """Our line in the TOML: ``ours`` as it should be, ``other`` as it was once or should be and is not."""
        if self.toml is None:
            return ""
        text, told = _text(self.toml, _read(self.toml)), self._with_notify()
        if isinstance(told, Taken):
            return ""
        if told == text:
            return "ours"
        return "other" if self.found or graft.silent(text) != text else ""

    def _with_notify(self) -> str | Taken:
        assert self.toml is not None
        with _blamed(self.toml):
            return graft.notify(_text(self.toml, _read(self.toml)), self.argv())

    def _change(self, path: Path, put: Callable[[str], str]) -> Change:
        now = _read(path)
        base = None if now is None else self._base(path, now, self._former().get(str(path)))
        with _blamed(path):
            return Change(path, now, put(_text(path, base)).encode())

    def _base(self, path: Path, now: bytes, former: Former | None) -> bytes | None:
        """What the file would be without us; ``None``: not there."""
        if former is not None and _hash(now) == former.after:
            return former.content
        with _blamed(path):
            text = _text(path, now)
            if path == self.toml:
                rest = graft.silent(text)
            else:
                before = _text(path, former.content) if former is not None else ""
                rest = graft.take(text, self.ours, before, self.comments)
        nothing = "" if path == self.toml else "{}"
        if former is not None and former.before is None and rest != text and rest.strip() == nothing:
            return None
        return rest.encode()

    def _former(self) -> dict[str, Former]:
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=dict[str, Former])
        except (OSError, msgspec.MsgspecError):
            return {}  # then our hooks are taken out, and the rest stays as it is

    def _remember(self, former: dict[str, Former]) -> None:
        if former:
            private_dir(self._settings.home)
            private_dir(self._record.parent)
            fresh = self._record.with_name(f"{self._record.name}.{os.getpid()}.new")
            fresh.touch(0o600)
            fresh.write_bytes(msgspec.json.encode(former))
            os.replace(fresh, self._record)
        else:
            self._record.unlink(missing_ok=True)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────

_agent = click.argument("name", metavar="AGENT", type=click.Choice(AGENTS))
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would change, as a diff, and change nothing.")


@click.group()
def hooks() -> None:
    """Make agents report what they do: claude (Claude Code), codex (Codex), gemini (Gemini CLI).

    An agent whose hooks are installed tells treewire when it works, waits or ends. What you and it say to each other is
    not told.
    """


@hooks.command()
@_agent
@click.option(
    "--via",
    type=click.Choice(["http", "command"]),
    help=f"How Claude Code reports. http: by itself, with the token in ${TOKEN}. command: by a small program that "
    f"reads the token. [default: http if ${TOKEN} is set, else command]",
)
@_dry_run
@_as_json
@click.pass_obj
def install(settings: Settings, name: str, via: Via | None, dry_run: bool, as_json: bool) -> None:
    """Add our hooks to the settings of AGENT. What is there stays, and twice is once."""
    if via == "http" and name != "claude":
        raise click.BadParameter(f"{NAMES[name]} runs commands only", param_hint="--via")
    agent = Agent(settings, name, via)
    changes = agent.install()
    if not dry_run:
        agent.write(changes, installing=True)
    done = "is set up already" if not changes else "would be set up" if dry_run else "is set up"
    _tell(agent, changes, dry_run, as_json, f"{NAMES[name]} {done}: it reports by {agent.via}.", agent.notes())


@hooks.command()
@_agent
@_dry_run
@_as_json
@click.pass_obj
def uninstall(settings: Settings, name: str, dry_run: bool, as_json: bool) -> None:
    """Take our hooks out of the settings of AGENT. What you changed since stays."""
    agent = Agent(settings, name)
    changes = agent.uninstall()
    if not dry_run:
        agent.write(changes, installing=False)
    done = "was not set up" if not changes else "would report no more" if dry_run else "reports no more"
    _tell(agent, changes, dry_run, as_json, f"{NAMES[name]} {done}.", [])


@hooks.command()
@click.argument("names", metavar="[AGENT]...", nargs=-1, type=click.Choice(AGENTS))
@_as_json
@click.pass_obj
def status(settings: Settings, names: tuple[str, ...], as_json: bool) -> None:
    """Say which agents report."""
    told = [_standing(settings, name) for name in names or AGENTS]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([one._asdict() for one in told]), indent=2).decode())
        return
    for one in told:
        by = f", by {one.via}" if one.via else ""
        click.echo(f"{one.agent}: {one.state}{by} ({', '.join(one.files)})")
        for note in one.notes:
            click.echo(f"  {note}")


class Standing(NamedTuple):
    """How it stands with one agent. ``broken``: its settings cannot be read, for the reason in the notes."""

    agent: str
    state: str
    via: str | None
    files: list[str]
    events: list[str]
    notes: list[str]


def _standing(settings: Settings, name: str) -> Standing:
    files = [str(path) for path in _files(name) if path is not None]
    try:
        agent = Agent(settings, name)
        state = agent.state()
        notes = agent.notes() if state != "absent" else []
    except click.ClickException as error:
        return Standing(name, "broken", None, files, [], [error.message])
    if state == "outdated":
        notes.insert(0, f"Its hooks are not as they should be: treewire hooks install {name}")
    return Standing(name, state, agent.via if agent.found else None, files, sorted(agent.found), notes)


def _tell(
    agent: Agent, changes: list[Change], dry_run: bool, as_json: bool, sentence: str, notes: Iterable[str]
) -> None:
    diffs = {str(change.path): _diff(change) for change in changes}
    if as_json:
        told: dict[str, Any] = {
            "agent": agent.name,
            "state": Agent(agent._settings, agent.name).state(),
            "via": agent.via,
            "changed": list(diffs),
            "notes": list(notes),
        }
        if dry_run:
            told["diff"] = diffs
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
        return
    for path, diff in diffs.items():
        click.echo(diff.rstrip("\n") if dry_run else f"Changed {path}.")
    click.echo(sentence)
    for note in notes:
        click.echo(note)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def _files(name: str) -> tuple[Path, Path | None]:
    """Where the agent keeps its settings: the hooks, and for Codex the file with `notify`."""

    def folder(variable: str, usual: str) -> Path:
        return Path(os.environ.get(variable) or f"~/{usual}").expanduser().absolute()

    if name == "codex":
        home = folder("CODEX_HOME", ".codex")
        return home / "hooks.json", home / "config.toml"
    return (
        folder("CLAUDE_CONFIG_DIR", ".claude") if name == "claude" else folder("", ".gemini")
    ) / "settings.json", None


def _address(settings: Settings) -> str:
    try:
        return settings.url_path.read_text().strip()
    except OSError:  # it has not run yet
        host = settings.gateway.host
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{settings.gateway.port}/"  # noqa: S104


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise click.ClickException(f"cannot read {path}: {error.strerror}; nothing was changed") from None


def _text(path: Path, content: bytes | None) -> str:
    try:
        return (content or b"").decode()
    except UnicodeDecodeError:
        raise click.ClickException(f"{path} is not UTF-8: nothing was changed; mend it and run this again") from None


def _write(change: Change) -> None:
    """In one step: a reader sees the former content or this. A link stays a link, and the mode stays."""
    path = Path(os.path.realpath(change.path))
    fresh = path.with_name(f".{path.name}.{os.getpid()}.treewire")
    try:
        if _read(change.path) != change.before:
            raise click.ClickException(f"{change.path} was changed meanwhile; run this again")
        if change.after is None:
            path.unlink()
            return
        mode = 0o600
        if change.before is None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            mode = stat.S_IMODE(path.stat().st_mode)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(change.after)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        raise click.ClickException(f"cannot write {change.path}: {error.strerror}; it is as it was") from None
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def _blamed(path: Path) -> Any:
    try:
        yield
    except Unfit as error:
        raise click.ClickException(f"{path} {error}; nothing was changed: mend it and run this again") from None


def _diff(change: Change) -> str:
    before, after = (_text(change.path, content).splitlines(keepends=True) for content in (change.before, change.after))
    lines = difflib.unified_diff(
        before,
        after,
        str(change.path) if change.before is not None else os.devnull,
        str(change.path) if change.after is not None else os.devnull,
    )
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
