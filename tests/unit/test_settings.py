"""Settings: the layers, what each may say, and the sentences for what it may not."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from pipeline.cli.up import environment
from pipeline.runtime.place import OperatorError, fits_sockets, private_dir
from pipeline.runtime.settings import DOORS, Settings, SettingsError

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_any_layer_the_defaults_hold(env: dict[str, str], tmp_path: Path) -> None:
    settings = Settings.load(environ=env)
    assert settings.home == tmp_path / "state" / "treewire"
    assert settings == Settings(home=settings.home)
    assert settings.database_url == f"sqlite:///{settings.home}/treewire.db"
    assert not settings.home.exists()


def test_each_layer_overrides_the_one_before(env: dict[str, str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    layers = [tmp_path / "config/treewire/config.toml", tmp_path / "here/treewire.toml", home / "treewire.toml"]
    for port, path in enumerate(layers, start=1001):
        put(path, f"[gateway]\nport = {port}\n")
        assert Settings.load(home, environ=env).gateway.port == port
    env["TREEWIRE_GATEWAY__PORT"] = "2000"
    assert Settings.load(home, environ=env).gateway.port == 2000
    assert Settings.load(home, {"gateway.port": 3000}, env).gateway.port == 3000
    assert Settings.load(home, {"gateway": {"port": 3001}}, env).gateway.port == 3001


def test_layers_are_merged_key_by_key(env: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "here/treewire.toml", "[gateway]\nprocesses = 2\n")
    put(tmp_path / "home/treewire.toml", "[gateway]\nport = 9\n")
    gateway = Settings.load(tmp_path / "home", environ=env).gateway
    assert (gateway.processes, gateway.port) == (2, 9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gateway]\nprot = 1\n", "unknown setting 'gateway.prot'"),
        ("[gatewy]\nport = 1\n", "did you mean 'gateway.port'"),
        ("port = 1\n", "unknown setting 'port'"),
        ("gateway = 1\n", "unknown setting 'gateway'"),
        ("[gateway]\nport = 70000\n", "gateway.port = 70000"),
        ('[gateway]\nport = "1"\n', "gateway.port = '1'"),
        ('[log]\nlevel = "loud"\n', "log.level = 'loud'"),
        ("[gateway\n", "is not valid TOML"),
        ("[gateway.port]\nx = 1\n", "gateway.port = {'x': 1}"),
        ("[git]\nactive_s = inf\n", "git.active_s = inf"),
        ("[git]\nidle_s = nan\n", "git.idle_s = nan"),
        ("[supervisor]\nsilent_s = nan\n", "expected float >= 3.0"),
        ("[supervisor]\ndrain_s = 1e9\n", "expected float <= 604800"),
        ("[reconciler]\nmin_gap_ms = 86400001\n", "expected int <= 86400000"),
        ("[gateway]\nheartbeat_ms = 1_000_000_000_000\n", "gateway.heartbeat_ms = 1000000000000"),
    ],
)
def test_what_a_file_may_not_say_is_named_with_the_file(
    text: str, said: str, env: dict[str, str], tmp_path: Path
) -> None:
    path = put(tmp_path / "home/treewire.toml", text)
    with pytest.raises(SettingsError) as error:
        Settings.load(tmp_path / "home", environ=env)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_an_unknown_variable_is_named_and_others_programs_variables_are_left_alone(env: dict[str, str]) -> None:
    Settings.load(environ=env | {"TREEWIRE_PYTHON": "x", "OTHER__KEY": "x"})
    with pytest.raises(SettingsError, match=r"TREEWIRE_GIT__WORKRES.*git\.workers"):
        Settings.load(environ=env | {"TREEWIRE_GIT__WORKRES": "2"})


def test_a_variable_with_one_underscore_is_an_error_that_names_the_one_that_was_meant(env: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"TREEWIRE_GATEWAY_PORT .* did you mean TREEWIRE_GATEWAY__PORT"):
        Settings.load(environ=env | {"TREEWIRE_GATEWAY_PORT": "1"})
    with pytest.raises(SettingsError, match="with two underscores"):
        Settings.load(environ=env | {"TREEWIRE_XYZZY": "1"})


def test_what_up_hands_to_its_processes_is_understood_by_them(env: dict[str, str], tmp_path: Path) -> None:
    settings = Settings.load(tmp_path / "home", {"gateway.port": 0, "git.workers": 3}, env)
    given = environment(settings, env) | {"TREEWIRE_SUPERVISOR_PID": "1"}
    assert Settings.load(environ=given) == settings
    used = set(re.findall(r"%\(ENV_(TREEWIRE_\w+)\)s", (CHECKOUT / "supervisord.conf").read_text()))
    assert used <= set(given)


@pytest.mark.parametrize("value", ["inf", "nan", "-inf", "1e30"])
def test_no_duration_from_the_environment_is_endless(value: str, env: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"supervisor\.ready_s = .* cannot be used: expected"):
        Settings.load(environ=env | {"TREEWIRE_SUPERVISOR__READY_S": value})


def test_the_environment_that_settings_give_loads_the_same_settings(env: dict[str, str], tmp_path: Path) -> None:
    changed = {
        "gateway.allowed_hosts": ["a", "b"],
        "gateway.port": 0,
        "git.active_s": 1.5,
        "database.url": "sqlite:////x y%z.db",
        "log.level": "debug",
    }
    settings = Settings.load(tmp_path / "home", changed, env)
    assert Settings.load(environ=env | settings.environment()) == settings


def test_the_shipped_file_of_defaults_says_what_the_code_says() -> None:
    shipped = tomllib.loads((CHECKOUT / "config/default.toml").read_text())
    coded = msgspec.to_builtins(Settings(home=Path("/x")), enc_hook=str)
    assert shipped == {section: values for section, values in coded.items() if section != "home"}


# A mapping is no settings file; its own tests read it.
@pytest.mark.parametrize(
    "example",
    sorted(path for path in (CHECKOUT / "config/examples").glob("*.toml") if path.stem != "mapping"),
    ids=lambda path: path.stem,
)
def test_the_shipped_examples_are_valid(example: Path, env: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path / "home/treewire.toml", example.read_text())
    Settings.load(tmp_path / "home", environ=env)


def test_a_home_too_long_for_sockets_gets_a_run_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep, deeper = (Settings(home=Path("/") / ("d" * 90) / name) for name in ("a", "b"))
    assert Settings(home=Path("/short")).run_dir == Path("/short/run")
    for runtime in ("/run/user/1", "/" + "r" * 90, ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        assert fits_sockets(deep.run_dir)
        assert deep.run_dir != deeper.run_dir
        assert deep.run_dir == Settings(home=deep.home).run_dir


def test_a_private_directory_is_closed_to_others(tmp_path: Path) -> None:
    open_to_all = tmp_path / "run"
    open_to_all.mkdir(mode=0o755)
    assert private_dir(open_to_all).stat().st_mode & 0o777 == 0o700
    assert private_dir(tmp_path / "new" / "run").stat().st_mode & 0o777 == 0o700


def test_a_private_directory_is_never_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="symbolic link"):
        private_dir(tmp_path / "link")
    with pytest.raises(OperatorError, match="not a directory"):
        private_dir(tmp_path / "file")
    with pytest.raises(OperatorError, match="cannot create"):
        private_dir(tmp_path / "file" / "run")
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setattr("os.getuid", lambda: mine.stat().st_uid + 1)
    with pytest.raises(OperatorError, match="belongs to uid"):
        private_dir(mine)


@pytest.mark.parametrize("key", sorted(DOORS))
def test_a_file_in_a_checkout_cannot_open_a_door(key, tmp_path, monkeypatch):
    section, _, name = key.partition(".")
    value = '["evil.example"]' if name.startswith("allowed") else '"evil.example"'
    (tmp_path / "treewire.toml").write_text(f"[{section}]\n{name} = {value}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="an agent may write to"):
        Settings.load(tmp_path / "home", environ={})


def test_the_file_of_defaults_may_lie_in_a_checkout_whole_and_takes_nothing_back(
    env: dict[str, str], tmp_path: Path
) -> None:
    put(tmp_path / "here/treewire.toml", (CHECKOUT / "config/default.toml").read_text())
    assert Settings.load(environ=env) == Settings(home=tmp_path / "state" / "treewire")
    put(tmp_path / "config/treewire/config.toml", '[gateway]\nallowed_hosts = ["board.example"]\n')
    assert Settings.load(environ=env).gateway.allowed_hosts == ["board.example"]
