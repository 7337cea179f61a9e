"""docs/requirements.md names real tests for every requirement; and promises that only a look at the code can hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline.domain.model import KINDS, Git

ROOT = Path(__file__).parents[2]
IDS = (
    [f"S{n}" for n in range(1, 8)]
    + ["B1", "B2"]
    + [f"R{n}" for n in range(1, 6)]
    + [f"G{n}" for n in range(1, 5)]
    + [f"W{n}" for n in range(1, 11)]
    + ["U1", "U2", "U3", "O1", "O2", "O3"]
)


def rows() -> dict[str, str]:
    text = (ROOT / "docs/requirements.md").read_text()
    return dict(re.findall(r"^\| ([A-Z]\d+) \|[^|]*\| (.*) \|$", text, re.MULTILINE))


def test_every_requirement_names_tests_that_exist_or_says_what_is_open() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    told = rows()
    assert list(told) == IDS
    for id_, held_by in told.items():
        named = set(re.findall(r"`(test_\w+)`", held_by))
        assert named <= defined, f"{id_} names tests that do not exist: {named - defined}"
        assert named or "*open*" in held_by or "import contracts" in held_by, f"{id_} is held by nothing"


@pytest.mark.parametrize("kind", KINDS.values())
def test_groups_cannot_be_changed_in_place(kind: type[msgspec.Struct]) -> None:
    value = kind()
    with pytest.raises(AttributeError):
        setattr(value, kind.__struct_fields__[0], "changed")


def test_groups_hold_counts_and_names_and_no_content() -> None:
    assert set(Git.__struct_fields__) == {
        *("head", "branch", "operation"),
        *("files", "insertions", "deletions", "staged", "unstaged", "untracked", "conflicted", "ahead", "behind"),
    }


def test_the_reconciler_loads_nothing_that_starts_processes() -> None:
    script = (
        "import sys, pipeline.reconciler.main\n"
        "print([name for name in ('workers', 'pipeline.gitdir', 'pipeline.sources') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
