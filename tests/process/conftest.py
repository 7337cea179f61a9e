"""What tests of several files here need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import Field, none_left


@pytest.fixture
def closed_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of its own, so that neither the tester's settings count nor the machine's."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def field(tmp_path: Path, closed_user_config: None) -> Iterator[Field]:
    """A worktree to be made hostile; whatever happened in it, no process may be left over."""
    yield Field(tmp_path)
    none_left(tmp_path)
