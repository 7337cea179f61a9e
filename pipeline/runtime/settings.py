"""Every value an operator may set: where it came from, what it may be, and what is said when it is wrong.

Later layers win: built-in defaults, the user's ``treewire/config.toml``, ``./treewire.toml``, ``treewire.toml`` in the
home, ``TREEWIRE_<SECTION>__<KEY>`` in the environment, flags. An unknown key is an error in every layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pipeline.runtime.place import OperatorError, fallback_run_dir, fits_sockets

Count = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
A_WEEK_S = 604_800
A_DAY_MS = 86_400_000
Seconds = Annotated[float, Meta(gt=0, le=A_WEEK_S)]
Millis = Annotated[int, Meta(ge=0, le=A_DAY_MS)]
Period = Annotated[int, Meta(ge=1, le=A_DAY_MS)]

_ENV = "TREEWIRE_"

# What decides who gets in, where the truth is read from, and who is sent the user's token. ``treewire up`` is run
# inside checkouts that agents write to, so a file lying there has no say in it.
DOORS = frozenset(
    {
        *("database.url", "gateway.host", "gateway.allowed_hosts", "gateway.allowed_origins"),
        *("github.host", "github.api", "github.webhook_secret_file"),
    }
)


# Variables that are no settings: the home, what `treewire up` and supervisord hand down, what a client is told by, and
# what the tests are.
VARIABLES = frozenset(
    {
        *("HOME", "RUN_DIR", "LOG_DIR", "PYTHON", "WORKERS", "GATEWAYS", "SILENT_S", "REVIVE_S", "STOP_S"),
        *("SUPERVISOR_PID", "TOKEN", "URL", "SHOTS", "EXAMPLES"),
    }
)


class SettingsError(OperatorError):
    """A setting that cannot be used; the message names the key, the layer and the remedy."""


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections."""


class Store(Section, frozen=True):
    max_entries: Count = 2000
    max_tombstones: Count = 1024
    max_sessions: Count = 64


class Gateway(Section, frozen=True):
    host: str = "127.0.0.1"
    port: Port = 8787
    processes: Count = 1
    ports: Literal["shared", "range"] = "shared"
    heartbeat_ms: Annotated[int, Meta(ge=100, le=A_DAY_MS)] = 10_000
    allowed_hosts: list[str] = []
    allowed_origins: list[str] = []
    send_buffer: Annotated[int, Meta(ge=4096)] = 65_536
    max_sockets: Count = 500
    compress: bool = True
    io_uring: bool = True


class Git(Section, frozen=True):
    workers: Count = 2
    deadline_ms: Period = 10_000
    active_s: Seconds = 30
    idle_s: Seconds = 300
    debounce_ms: Millis = 20
    max_wait_ms: Millis = 100
    max_watches: Annotated[int, Meta(ge=0)] = 3000


class Database(Section, frozen=True):
    url: str = ""
    keep_archived_days: Annotated[float, Meta(gt=0, le=36_500)] = 30


class Reconciler(Section, frozen=True):
    every_s: Seconds = 60
    poll_ms: Period = 500
    min_gap_ms: Millis = 2000


class Sources(Section, frozen=True):
    discover_s: Seconds = 60
    claude: bool = True
    codex: bool = True
    processes: bool = True
    tmux: bool = True
    github: bool = True


class GitHub(Section, frozen=True):
    host: str = "github.com"
    api: str = ""
    webhook_secret_file: str = ""


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"


class Supervisor(Section, frozen=True):
    silent_s: Annotated[float, Meta(ge=3, le=A_WEEK_S)] = 20
    revive_s: Seconds = 30
    drain_s: Seconds = 5
    ready_s: Seconds = 30


class Settings(Section, frozen=True):
    """All settings of one deployment; the *home* is what makes two deployments different."""

    home: Path
    store: Store = Store()
    gateway: Gateway = Gateway()
    git: Git = Git()
    database: Database = Database()
    reconciler: Reconciler = Reconciler()
    sources: Sources = Sources()
    github: GitHub = GitHub()
    log: Log = Log()
    supervisor: Supervisor = Supervisor()

    @classmethod
    def load(
        cls,
        home: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Read all layers. ``overrides`` are flags, as ``{"gateway.port": 0}`` or nested.

        Raises `SettingsError` at the first value that cannot be used. Creates nothing.
        """
        env = os.environ if environ is None else environ
        home = (home or default_home(env)).expanduser().absolute()
        values: dict[str, dict[str, Any]] = {}
        nearby = Path.cwd() / "treewire.toml"
        for path in (_user_config(env), nearby, home / "treewire.toml"):
            for key, value in _flat(_read_toml(path)).items():
                if path == nearby and key in DOORS:
                    if value == _default(key):
                        continue  # a copy of all defaults says nothing, and takes nothing back
                    raise SettingsError(
                        f"{path}: {key} may not be set from the current directory, which an agent may write to; "
                        f"set it in {home / 'treewire.toml'}"
                    )
                _set(values, key, value, str(path), strict=True)
        for variable, text in sorted(env.items()):
            if variable.startswith(_ENV) and variable.removeprefix(_ENV) not in VARIABLES:
                _set(values, _key(variable), text, f"the environment ({variable})", strict=False)
        for key, value in _flat(overrides or {}).items():
            _set(values, key, value, "the command line", strict=True)
        sections: dict[str, Any] = {section: _SECTIONS[section](**given) for section, given in values.items()}
        return cls(home=home, **sections)

    @property
    def run_dir(self) -> Path:
        """Where sockets, beats and locks live. A home too long for a unix socket's name gets a short directory."""
        near = self.home / "run"
        return near if fits_sockets(near) else fallback_run_dir(self.home)

    @property
    def log_dir(self) -> Path:
        return self.home / "log"

    @property
    def token_path(self) -> Path:
        return self.home / "token"

    @property
    def url_path(self) -> Path:
        return self.home / "url"

    @property
    def webhook_secret_path(self) -> Path:
        return Path(self.github.webhook_secret_file or self.home / "github-webhook-secret")

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.home / 'treewire.db'}"

    def environment(self) -> dict[str, str]:
        """Every value that is not the default, as environment: whoever is given it loads these same settings."""
        env = {f"{_ENV}HOME": str(self.home)}
        for section, kind in _SECTIONS.items():
            values, defaults = getattr(self, section), kind()
            for name in kind.__struct_fields__:
                value = getattr(values, name)
                if value != getattr(defaults, name):
                    text = ",".join(value) if isinstance(value, list) else str(value)
                    env[f"{_ENV}{section.upper()}__{name.upper()}"] = text
        return env


_SECTIONS: dict[str, type[Section]] = {
    "store": Store,
    "gateway": Gateway,
    "git": Git,
    "database": Database,
    "reconciler": Reconciler,
    "sources": Sources,
    "github": GitHub,
    "log": Log,
    "supervisor": Supervisor,
}


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """``$TREEWIRE_HOME``, else ``treewire`` in the user's state directory."""
    if home := environ.get(f"{_ENV}HOME"):
        return Path(home)
    state = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "treewire"


def _user_config(environ: Mapping[str, str]) -> Path:
    config = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "treewire" / "config.toml"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}; make it readable or remove it") from None
    import tomllib  # only who has a file pays for the parser

    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return flat


def _default(key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(_SECTIONS[section](), name)


def _key(variable: str) -> str:
    """The setting that a variable is for. Raises `SettingsError` for one that is for none."""
    section, found, name = variable.removeprefix(_ENV).lower().partition("__")
    if found:
        return f"{section}.{name}"
    known = [f"{section}__{name}".upper() for section, kind in _SECTIONS.items() for name in kind.__struct_fields__]
    near = _close(variable.removeprefix(_ENV), [*known, *VARIABLES])
    hint = f"did you mean {_ENV}{near}?" if near else f"a setting is {_ENV}<SECTION>__<KEY>, with two underscores"
    raise SettingsError(f"{variable} in the environment is no setting; {hint}")


def _set(values: dict[str, dict[str, Any]], key: str, value: Any, where: str, *, strict: bool) -> None:
    section, _, name = key.partition(".")
    kind = _SECTIONS.get(section)
    if kind is None or name not in kind.__struct_fields__:
        raise SettingsError(f"unknown setting {key!r} in {where}{_nearest(key)}")
    try:
        values.setdefault(section, {})[name] = _converted(kind, name, value, strict)
    except msgspec.ValidationError as error:
        said = str(error).split(" - at ")[0].replace("`", "").lower()
        raise SettingsError(f"{key} = {value!r} in {where} cannot be used: {said}") from None


def _converted(kind: type[Section], name: str, value: Any, strict: bool) -> Any:
    if not strict and isinstance(getattr(kind(), name), list):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return getattr(msgspec.convert({name: value}, kind, strict=strict), name)


def _nearest(key: str) -> str:
    known = [f"{section}.{name}" for section, kind in _SECTIONS.items() for name in kind.__struct_fields__]
    near = _close(key, known)
    return f"; did you mean {near!r}?" if near else f"; sections are {', '.join(_SECTIONS)}"


def _close(word: str, known: list[str]) -> str:
    import difflib  # only who made a mistake pays for it

    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
