"""What agents' hooks become, what never gets in, and that installing is undone byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.hooks import Hook, joined
from gateway.tokens import OPERATOR
from pipeline.bridges import event, hooks

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


def _hook(name: str, **more: Any) -> bytes:
    return json.dumps({"session_id": "s1", "cwd": "/srv/web", "hook_event_name": name, **more}).encode()
