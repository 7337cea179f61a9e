"""What agents' hooks become, what never gets in, and that installing is undone byte for byte."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hooks import Hook, joined
from gateway.tokens import OPERATOR
from pipeline.bridges import event, hooks
from pipeline.cli import graft, herald
from pipeline.cli.hooks import EVENTS, TOKEN, Agent
from pipeline.runtime.settings import Settings

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hooks"
CANARY = "CANARY-7f3a"


def cases() -> list[Any]:
    found = []
    for agent in hooks.AGENTS:
        for line in (FIXTURES / f"{agent}.jsonl").read_text().splitlines():
            case = json.loads(line)
            hook = case["hook"]
            name = hook.get("hook_event_name") or hook["type"]
            more = hook.get("notification_type") or hook.get("tool_name") or hook.get("source") or ""
            found.append(pytest.param(agent, hook, case["says"], id=f"{agent}-{name}-{more}".rstrip("-")))
    return found


# ── what a hook becomes ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("agent", "hook", "says"), cases())
def test_each_hook_becomes_the_state_that_it_tells_and_nothing_else_of_it_gets_in(
    agent: str, hook: dict[str, Any], says: dict[str, Any] | None
) -> None:
    told = hooks.read(agent, json.dumps(hook).encode())
    if says is None:
        assert told is None
        return
    assert told is not None
    crashed = {"crashed": False} if "state" in says else {}
    assert told.fields == {"provider": agent, **says, **crashed}
    assert told.group == f"session:{agent}-{hook.get('session_id') or hook['thread-id']}"
    assert told.cwd == hook.get("new_cwd", hook["cwd"])
    assert told.waits == (says.get("state") == "waiting")
    assert CANARY not in repr(told)
    # What is made of it is an event like any other.
    event.of({"project": "web", "workspace": "w1", "group": told.group, "fields": told.fields})


def test_the_fixtures_hold_every_event_that_there_is_a_rule_for_and_the_canary() -> None:
    seen: dict[str, set[str]] = {agent: set() for agent in hooks.AGENTS}
    for case in cases():
        agent, hook, _ = case.values
        seen[agent].add(hook.get("hook_event_name") or hook["type"])
    assert set(hooks.EVENTS) <= {*seen["claude"], *seen["codex"]}
    for agent, names in hooks.ALSO.items():
        assert set(names) <= seen[agent]
    assert all(CANARY in (FIXTURES / f"{agent}.jsonl").read_text() for agent in hooks.AGENTS)


def test_a_session_that_goes_to_another_folder_says_which_one_it_left() -> None:
    told = hooks.read("claude", _hook("CwdChanged", cwd="/srv/a", old_cwd="/srv/a", new_cwd="/srv/b"))
    assert told is not None
    assert (told.left, told.cwd) == ("/srv/a", "/srv/b")


def test_a_notification_is_no_news_to_whoever_knows_what_is_waited_for() -> None:
    for kind, still in (("permission_prompt", True), ("elicitation_dialog", True), ("idle_prompt", False)):
        told = hooks.read("claude", _hook("Notification", notification_type=kind))
        assert told is not None
        assert told.still is still
    asked = hooks.read("claude", _hook("PermissionRequest", tool_name="ExitPlanMode"))
    assert asked is not None
    assert not asked.still


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"CANARY-7f3a {", "body"),
        (b'["CANARY-7f3a"]', "body"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
        (b'{"hook_event_name": "Stop", "cwd": "/srv/web", "session_id": "\xff"}', "session_id"),
        (b'{"hook_event_name": "Stop", "cwd": "/srv/web"}', "session_id"),
        (b'{"hook_event_name": "Stop", "cwd": "/srv/web", "session_id": "../CANARY-7f3a"}', "session_id"),
        (b'{"hook_event_name": "Stop", "cwd": "/srv/web", "session_id": 7}', "session_id"),
        (b'{"hook_event_name": "Stop", "session_id": "s1"}', "cwd"),
        (b'{"hook_event_name": "Stop", "session_id": "s1", "cwd": "CANARY-7f3a/here"}', "cwd"),
        (b'{"hook_event_name": "Stop", "session_id": "s1", "cwd": "/nul\\u0000"}', "cwd"),
    ],
)
def test_what_is_no_hook_is_an_error_that_names_the_field_and_quotes_nothing(body: bytes, field: str) -> None:
    with pytest.raises(hooks.HookError) as raised:
        hooks.read("claude", body)
    assert raised.value.field == field
    assert CANARY not in str(raised.value)


def test_a_member_of_another_type_than_is_known_is_left_out() -> None:
    told = hooks.read("claude", _hook("SessionStart", source=["new"], model={"id": "opus"}, tool_name=None))
    assert told is not None
    assert told.fields == {"provider": "claude", "state": "idle", "waiting_for": None, "crashed": False}
    assert hooks.read("claude", _hook("SessionStart", model="x" * 600)) == told
    assert hooks.read("claude", b"{}") is None


def test_hooks_that_had_to_wait_for_the_catalog_are_joined_by_when_they_happened() -> None:
    def hook(at_ns: int, name: str, **more: Any) -> Hook:
        told = hooks.read("claude", _hook(name, **more))
        assert told is not None
        return Hook("claude", told, OPERATOR, at_ns)

    start = hook(1, "SessionStart", model="opus")
    moved = hook(2, "CwdChanged", old_cwd="/srv/web", new_cwd="/srv/api")
    plan = hook(3, "PermissionRequest", tool_name="ExitPlanMode")
    prompt = hook(4, "Notification", notification_type="permission_prompt")
    late = joined(joined(plan, joined(moved, start)), prompt)
    assert late.at_ns == 4
    assert late.told.fields == {**plan.told.fields, "model": "opus"}
    assert (late.told.left, late.told.cwd, late.told.still) == ("/srv/web", "/srv/web", False)
    assert joined(prompt, start).told.fields["waiting_for"] == "permission"


@pytest.mark.parametrize(
    ("asked", "beside", "goes_on"),
    [
        ({}, ("PreToolUse", {"tool_name": "Read"}), False),  # the turn has gone on: it was refused
        ({}, ("PostToolUse", {"tool_name": "Bash"}), False),
        ({}, ("PostToolUse", {"tool_name": "Read"}), True),  # it ran beside the one that is asked about
        ({}, ("PostToolUseFailure", {"tool_name": "Read"}), True),
        ({}, ("PreToolUse", {"tool_name": "Bash", "agent_id": "a1"}), True),
        ({}, ("SubagentStop", {"agent_id": "a1"}), True),
        ({}, ("Stop", {}), False),
        ({}, ("SessionEnd", {}), False),
        ({"agent_id": "a1"}, ("PostToolUse", {"tool_name": "Bash"}), True),
        ({"agent_id": "a1"}, ("PostToolUse", {"tool_name": "Bash", "agent_id": "a2"}), True),
        ({"agent_id": "a1"}, ("PostToolUse", {"tool_name": "Bash", "agent_id": "a1"}), False),
        ({"agent_id": "a1"}, ("SubagentStop", {"agent_id": "a1"}), False),
        ({"agent_id": "a1"}, ("UserPromptSubmit", {}), False),
        ({"agent_id": "a1"}, ("Stop", {}), False),
        ({}, ("PermissionRequest", {"tool_name": "WebFetch", "agent_id": "a1"}), False),  # there is a newer one
    ],
)
def test_a_wait_goes_on_while_others_of_its_session_work(asked: dict[str, str], beside: Any, goes_on: bool) -> None:
    """07: waiting never folds into working."""
    waits = hooks.read("claude", _hook("PermissionRequest", tool_name="Bash", **asked))
    then = hooks.read("claude", _hook(beside[0], **beside[1]))
    assert waits is not None
    assert waits.wait is not None
    assert then is not None
    assert then.leaves(waits.wait) is goes_on
    later = joined(Hook("claude", waits, OPERATOR, 1), Hook("claude", then, OPERATOR, 2)).told
    assert (later.fields["state"] == "waiting") == (goes_on or then.waits)
    assert later.wait == (waits.wait if goes_on else then.wait)


def test_of_a_wait_that_only_a_notification_told_of_nobody_knows_whose_it_is() -> None:
    told = hooks.read("claude", _hook("Notification", notification_type="permission_prompt"))
    then = hooks.read("claude", _hook("PostToolUse", tool_name="Read", agent_id="a1"))
    assert told is not None
    assert told.wait is not None
    assert then is not None
    assert not then.leaves(told.wait)


def _hook(name: str, **more: Any) -> bytes:
    return json.dumps({"session_id": "s1", "cwd": "/srv/web", "hook_event_name": name, **more}).encode()


# ── installing ───────────────────────────────────────────────────────────────────────────────────


def test_what_carries_hooks_sends_what_is_read_and_no_more() -> None:
    assert herald.KEPT == hooks.KEPT
    for case in cases():
        agent, hook, _ = case.values
        sent = herald.kept(json.dumps(hook))
        assert sent is not None
        assert CANARY.encode() not in sent
        assert hooks.read(agent, sent) == hooks.read(agent, json.dumps(hook).encode())
    for bad in ("", "[]", "7", "[" * 100_000):
        assert herald.kept(bad) is None


class User:
    """Somebody with a home, and agents in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings(home=home / "treewire")

    def file(self, name: str) -> Path:
        return self.home / f".{name}" / ("hooks.json" if name == "codex" else "settings.json")

    def install(self, name: str, via: Any = None) -> int:
        agent = Agent(self.settings, name, via)
        changes = agent.install()
        agent.write(changes, installing=True)
        assert Agent(self.settings, name).state() == "installed"
        return len(changes)

    def uninstall(self, name: str) -> int:
        agent = Agent(self.settings, name)
        changes = agent.uninstall()
        agent.write(changes, installing=False)
        assert Agent(self.settings, name).state() == "absent"
        return len(changes)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", TOKEN):
        monkeypatch.delenv(name, raising=False)
    return User(tmp_path)


TEXT = st.text(max_size=6) | st.sampled_from(["hooks", "// no comment", "/*", "*/", '"', "\\", "# treewire"])
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
COMMAND = st.fixed_dictionaries({"type": st.just("command"), "command": st.sampled_from(["echo hi", "say.sh # mine"])})
GROUP = st.fixed_dictionaries(
    {"hooks": st.lists(COMMAND, max_size=2)}, optional={"matcher": st.sampled_from(["", "Bash", "*"])}
)
NAMES = st.sampled_from(["Stop", "SessionStart", "PreToolUse", "BeforeTool", "WorktreeCreate", "Own"])
SETTINGS = st.builds(
    lambda rest, hooks: {**{name: value for name, value in rest.items() if name != "hooks"}, **hooks},
    st.dictionaries(TEXT, JSON, max_size=4),
    st.just({}) | st.fixed_dictionaries({"hooks": st.dictionaries(NAMES, st.lists(GROUP, max_size=2), max_size=3)}),
)


@st.composite
def written(draw: Any) -> tuple[str, Any]:
    """Settings as somebody may have written them, and what they say."""
    value = draw(SETTINGS)
    indent = draw(st.sampled_from([None, 0, 1, 2, 4, "\t"]))
    tight = draw(st.booleans())
    text = json.dumps(value, indent=indent, separators=(",", ":") if tight else None, ensure_ascii=draw(st.booleans()))
    text = text.encode("utf-8", "backslashreplace").decode().replace("{}", draw(st.sampled_from(["{}", "{ }", "{\n}"])))
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    text = draw(st.sampled_from(["", "\n", " "])) + text + draw(st.sampled_from(["", "\n", "\n\n"]))
    try:
        return text, json.loads(text)
    except ValueError:  # the braces were inside of a text
        return json.dumps(value), value


@given(written(), st.sampled_from(hooks.AGENTS), st.sampled_from(["http", "command"]))
def test_installing_keeps_everything_and_uninstalling_restores_every_byte(
    given: tuple[str, Any], name: str, via: str
) -> None:
    text, value = given
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", folder)
        for variable in ("CLAUDE_CONFIG_DIR", "CODEX_HOME"):
            patch.delenv(variable, raising=False)
        user = User(Path(folder))
        user.file(name).parent.mkdir()
        user.file(name).write_bytes(text.encode())
        via = via if name == "claude" else "command"
        assert user.install(name, via) > 0
        once = user.file(name).read_bytes()
        assert user.install(name, via) == 0
        assert user.file(name).read_bytes() == once
        added = json.loads(once)
        for event_ in EVENTS[name]:
            assert added["hooks"][event_].pop()["hooks"] == [Agent(user.settings, name, via).hooks()[event_]]
        former = value.get("hooks", {})
        kept = {key: groups for key, groups in added["hooks"].items() if groups or key in former}
        assert {**added, "hooks": kept} == {"hooks": {}, **value}
        user.uninstall(name)
        assert user.file(name).read_bytes() == text.encode()
        assert not (user.settings.home / "hooks" / f"{name}.json").exists()


@given(written(), st.sampled_from(["claude", "gemini"]), st.booleans())
def test_what_the_user_changed_since_stays_as_he_wrote_it(given: tuple[str, Any], name: str, first: bool) -> None:
    text, value = given
    agent = Agent(Settings(home=Path("/nowhere")), name, "command")
    comments = name == "gemini"
    added = graft.put(text, agent.hooks(), comments)
    comment = " // mine, {not yours}\n" if comments else "\n"
    if first:
        at = added.index("{") + 1
        edited = f'{added[:at]}{comment}"edited":   [1,2] ,{added[at:]}'
    else:
        at = added.rindex("}")
        edited = f'{added[:at]},{comment}"edited":   [1,2] {added[at:]}'
    left = graft.take(edited, agent.ours, text, comments)
    assert '"edited":   [1,2]' in left
    assert comment.strip() in left
    assert json.loads(left.replace("// mine, {not yours}", "")) == {**value, "edited": [1, 2]}
    assert graft.take(left, agent.ours, text, comments) == left


def test_where_nothing_was_nothing_is_left(user: User) -> None:
    for name in hooks.AGENTS:
        user.install(name)
        found = stat.S_IMODE(user.file(name).stat().st_mode)
        assert found == 0o600
        user.uninstall(name)
        assert not user.file(name).parent.exists()
        assert user.uninstall(name) == 0
    # An empty file is one, and a folder with something in it stays.
    user.file("claude").parent.mkdir()
    user.file("claude").touch()
    user.install("claude")
    user.uninstall("claude")
    assert user.file("claude").read_bytes() == b""
    user.file("claude").unlink()
    user.install("claude")
    (user.file("claude").parent / "mine").touch()
    user.uninstall("claude")
    assert [path.name for path in user.file("claude").parent.iterdir()] == ["mine"]
    # What the user added since keeps the file.
    user.install("gemini")
    settings = json.loads(user.file("gemini").read_text())
    user.file("gemini").write_text(json.dumps({**settings, "theme": "dark"}))
    user.uninstall("gemini")
    assert json.loads(user.file("gemini").read_text()) == {"theme": "dark"}


def test_a_link_stays_a_link_and_a_mode_a_mode(user: User) -> None:
    real = user.home / "dotfiles" / "claude.json"
    real.parent.mkdir()
    real.write_text('{"model": "opus"}')
    real.chmod(0o640)
    user.file("claude").parent.mkdir()
    user.file("claude").symlink_to(real)
    user.install("claude")
    assert user.file("claude").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert json.loads(real.read_text())["model"] == "opus"
    user.uninstall("claude")
    assert user.file("claude").is_symlink()
    assert real.read_text() == '{"model": "opus"}'
    assert [path.name for path in real.parent.iterdir()] == ["claude.json"]


def test_a_hook_that_the_user_put_beside_ours_stays_and_so_does_the_group(user: User) -> None:
    user.install("claude")
    settings = json.loads(user.file("claude").read_text())
    settings["hooks"]["Stop"][0]["hooks"].append({"type": "command", "command": "say done"})
    user.file("claude").write_text(json.dumps(settings))
    user.uninstall("claude")
    left = {"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "say done"}]}]}}
    assert json.loads(user.file("claude").read_text()) == left


def test_a_lost_record_costs_no_more_than_empty_braces(user: User) -> None:
    user.file("claude").parent.mkdir()
    user.file("claude").write_text('{"model": "opus"}\n')
    user.install("claude")
    (user.settings.home / "hooks" / "claude.json").write_text("broken")
    user.uninstall("claude")
    assert json.loads(user.file("claude").read_text()) == {"model": "opus"}


def test_the_token_is_in_no_file_and_the_hook_that_makes_worktrees_is_never_ours(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "CANARY-token")
    for name in hooks.AGENTS:
        user.install(name)
    claude = json.loads(user.file("claude").read_text())["hooks"]
    assert "WorktreeCreate" not in claude
    # The token is set, so that Claude Code can report by itself; but for what it runs as a command only.
    kinds = {event_: groups[0]["hooks"][0]["type"] for event_, groups in claude.items()}
    assert kinds.pop("SessionStart") == "command"
    assert set(kinds.values()) == {"http"}
    assert claude["Stop"][0]["hooks"][0] == {
        "type": "http",
        "url": "http://127.0.0.1:8787/v1/events/claude",
        "headers": {"Authorization": "Bearer $TREEWIRE_TOKEN"},
        "allowedEnvVars": ["TREEWIRE_TOKEN"],
        "timeout": 3,
    }
    for path in user.home.rglob("*"):
        assert not path.is_file() or b"CANARY-token" not in path.read_bytes()
    # Every event that is installed has a rule, or what is the use.
    for name, events in EVENTS.items():
        for event_ in events:
            assert hooks.ALSO[name].get(event_, event_) in {*hooks.EVENTS, "Notification"}


def test_another_way_of_reporting_takes_the_place_of_the_first(user: User) -> None:
    user.file("claude").parent.mkdir()
    user.file("claude").write_text('{"model": "opus"}')
    user.install("claude", "command")
    assert user.install("claude", "http") == 1
    assert user.install("claude") == 0
    user.settings.url_path.parent.mkdir(exist_ok=True)
    user.settings.url_path.write_text("http://127.0.0.1:9999/\n")
    assert Agent(user.settings, "claude").state() == "outdated"
    assert user.install("claude") == 1
    assert (
        user.file("claude").read_text().count('"http://127.0.0.1:9999/v1/events/claude"') == len(EVENTS["claude"]) - 1
    )
    user.uninstall("claude")
    assert user.file("claude").read_text() == '{"model": "opus"}'


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "7", '{"hooks": []}', '{"hooks": {"Stop": {}}}', '{"hooks": {"Stop": [7]}}', "[" * 100_000,
        '{"hooks": {"Stop": [{"matcher": ""}]}}', '{"hooks": {"Stop": [{"hooks": ["x"]}]}}', '{} // no', "\ufeff{}",
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_settings_that_are_broken_stay_as_they_are_and_the_error_names_the_file(user: User, text: str) -> None:
    file = user.file("claude")
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(click.ClickException, match="nothing was changed") as raised:
        user.install("claude")
    assert str(file) in raised.value.message
    assert file.read_text() == text


def test_what_changes_while_it_is_edited_is_not_overwritten(user: User) -> None:
    file = user.file("claude")
    file.parent.mkdir()
    file.write_text("{}")
    agent = Agent(user.settings, "claude")
    changes = agent.install()
    file.write_text('{"model": "opus"}')
    with pytest.raises(click.ClickException, match="meanwhile"):
        agent.write(changes, installing=True)
    assert file.read_text() == '{"model": "opus"}'
    assert os.listdir(file.parent) == ["settings.json"]


def test_codex_is_told_to_notify_us_unless_it_notifies_somebody_else(user: User) -> None:
    config = user.home / ".codex" / "config.toml"
    config.parent.mkdir()
    for text in ("", 'model = "gpt-5"\n\n[features]\nhooks = true\n', "# mine\r\n[a]\r\nb = 1\r\n", 'x = "é"'):
        config.write_bytes(text.encode())
        user.install("codex")
        added = tomllib.loads(config.read_bytes().decode())
        command = added.pop("notify")
        assert command[-2:] == ["codex", str(user.settings.home)]
        assert added == tomllib.loads(text)
        # Codex itself writes into it.
        config.write_bytes(config.read_bytes() + b"\n[projects]\n")
        assert Agent(user.settings, "codex").state() == "installed"
        user.uninstall("codex")
        assert config.read_bytes() == text.encode() + b"\n[projects]\n"
    config.write_text('notify = ["say", "done"]\n')
    user.install("codex")
    assert config.read_text() == 'notify = ["say", "done"]\n'
    assert any("stays" in note for note in Agent(user.settings, "codex").notes())
    user.uninstall("codex")
    config.write_text("notify = [")
    with pytest.raises(click.ClickException, match="not valid TOML"):
        user.install("codex")
