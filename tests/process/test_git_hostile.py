"""No program that a worktree names is ever run, on no way in which treewire comes to it (G3, S5).

Each trap is first looked at, and must not spring. Then plain git is let into the same worktree, and the trap must
spring: so that a trap which git no longer steps into cannot pass for safety. Then it is armed for plain git behind the
kernel's wall, which must hold alone.
"""

from __future__ import annotations

import msgspec
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.runtime import spawn
from pipeline.runtime.landlock import elsewhere
from tests.gitkit import commit, git, write
from tests.hostile import FILTERED, NUMBERS, TRAPS, Field, Outcome, Trap, harmless

pytestmark = pytest.mark.timeout(60)


def says(outcome: Outcome, expected: tuple[int, int, int] | str) -> bool:
    if isinstance(expected, str):
        return outcome.reason == expected
    return outcome.numbers == expected


@pytest.mark.parametrize("trap", TRAPS.values(), ids=TRAPS)
def test_a_trap_does_not_spring_for_treewire_although_it_does_for_plain_git(field: Field, trap: Trap) -> None:
    field.look()  # a first look, so that scoped ones have something to go on
    trap.arm(field)
    field.canary.unlink(missing_ok=True)  # arming takes git itself
    with harmless(field):
        outcomes = [
            field.look("a.txt", "new.txt"),
            field.look(),
            field.look("a.txt", "new.txt", "b.txt"),
            field.look(walled=True),
            field.look("a.txt", "new.txt", walled=True),
        ]
        assert field.discover() == ""
        assert field.watch()
    for outcome in outcomes:
        assert says(outcome, trap.expected) or (trap.expected == FILTERED and outcome.numbers), outcome
    trap.spring(field)
    assert field.sprung(), "the trap is not armed, so this test says nothing"


@pytest.mark.skipif(bool(spawn.wall()), reason=spawn.wall())
@pytest.mark.parametrize("name", sorted(TRAPS.keys() - {"pager"}))  # behind the wall there is no terminal to page on
def test_behind_the_wall_a_trap_does_not_even_spring_for_plain_git(field: Field, name: str) -> None:
    """The second wall alone: none of the flags, the real git directory, the agent's own configuration, and all that is
    here open for writing, the canary too."""
    TRAPS[name].arm(field)
    field.canary.unlink(missing_ok=True)

    def step_in() -> None:
        assert spawn.enclose(field.root) == ""
        TRAPS[name].spring(field)

    elsewhere(step_in)
    assert not field.sprung()


def test_a_filter_that_touches_no_changed_file_does_not_matter(field: Field) -> None:
    write(field.tree, {"big.bin": "pointer\n", ".gitattributes": "*.bin filter=evil\n"})
    commit(field.tree)
    field.config("filter.evil.clean", str(field.program))
    field.edit()
    with harmless(field):
        assert field.look().numbers == (4, 4, 1)
        assert field.look("a.txt").numbers == (4, 4, 1)


def test_the_environment_of_the_worker_does_not_reach_git(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    field.edit()
    for name in ("GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_ASKPASS", "SSH_ASKPASS", "GIT_EDITOR"):
        monkeypatch.setenv(name, str(field.program))
    for name in ("GIT_TRACE", "GIT_TRACE2_EVENT", "GIT_TRACE_SETUP"):
        monkeypatch.setenv(name, str(field.canary))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(field.program))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor'='{field.program}'")
    monkeypatch.setenv("GIT_DIR", str(field.root))
    monkeypatch.setenv("GIT_WORK_TREE", str(field.root))
    monkeypatch.setenv("GIT_INDEX_FILE", str(field.root / "none"))
    monkeypatch.setenv("GIT_EXEC_PATH", str(field.tree))
    monkeypatch.setenv("LD_PRELOAD", str(field.tree / "none.so"))
    with harmless(field):
        assert field.look().numbers == field.look("a.txt", "new.txt").numbers == NUMBERS
        assert field.discover() == ""


# ── all at once, on the ways that take longer ────────────────────────────────────────────────────


def test_nothing_springs_while_a_project_is_added_by_command(field: Field) -> None:
    armed = [
        TRAPS[name]
        for name in (
            "fsmonitor", "filter_clean", "filter_process", "filter_by_info_attributes", "filter_by_include",
            "filter_by_include_if_on_branch", "hooks_of_every_name", "diff_external", "textconv", "alias", "pager",
            "editor", "credential_helper", "gpg", "promisor_ext", "submodule_fsmonitor",
        )
    ]  # fmt: skip
    for trap in reversed(armed):  # the ones that need git to arm them first
        trap.arm(field)
    field.canary.unlink(missing_ok=True)
    with harmless(field):
        done = CliRunner().invoke(main, ["--home", str(field.root / "tw"), "project", "add", str(field.tree), "--json"])
        assert done.exit_code == 0, done.output
        assert msgspec.json.decode(done.stdout)[0]["worktrees"] == 2
    git(field.tree, "status", check=False)
    assert field.sprung()


def test_reading_settings_does_not_do_what_they_say(field: Field) -> None:
    field.config("include.path", str(field.root / "more"), "core.fsmonitor", str(field.program))
    (field.root / "more").write_text(f"[alias]\n\tconfig = !{field.program}\n[core]\n\tpager = {field.program}\n")
    field.edit()
    with harmless(field):
        assert field.look().numbers == NUMBERS
