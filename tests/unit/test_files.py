"""What changed is noticed, and what is not there costs no question of its own (G2)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workers.files import SETTLED_NS, Files, Together


def settle() -> None:
    time.sleep(2 * SETTLED_NS / 1e9)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("config", "info/exclude", "unrelated"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    settle()
    return tmp_path


def watch(place: Path) -> Files:
    names = ("config", "info/exclude", "info/attributes", "shallow", "own/info/sparse-checkout", "own/info/more")
    return Files(f"{place}/{name}" for name in names)


def test_files_that_stay_as_they_are_are_the_same(place: Path) -> None:
    files = watch(place)
    assert files.same()
    (place / "unrelated").write_text("2\n")
    (place / "info/unrelated").write_text("2\n")
    assert files.same(), "beside them anything may happen"
    settle()
    assert files.same()


@pytest.mark.parametrize("name", ["config", "info/exclude"])
def test_a_file_that_is_written_replaced_or_removed_is_another(place: Path, name: str) -> None:
    files = watch(place)
    (place / name).write_text("2\n")
    assert not files.same()
    settle()
    files = watch(place)
    (place / "other").write_text("2\n")
    (place / "other").rename(place / name)
    assert not files.same()
    settle()
    files = watch(place)
    (place / name).unlink()
    assert not files.same()


@pytest.mark.parametrize("name", ["info/attributes", "shallow", "own/info/sparse-checkout"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_a_file_that_comes_is_noticed_however_deep_its_directories_were_missing(
    place: Path, name: str, kind: str
) -> None:
    files = watch(place)
    path = place / name
    for parent in reversed(path.parents):
        if not parent.exists():
            parent.mkdir()
            assert files.same(), "a directory on the way is none of them"
    if kind == "file":
        path.write_text("")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    assert not files.same()
    path.rmdir() if kind == "directory" else path.unlink()
    assert files.same(), "and gone it is as it was"


def test_directories_that_were_exchanged_are_noticed(place: Path) -> None:
    (place / "other").mkdir()
    (place / "other/attributes").write_text("*.x binary\n")
    os.link(place / "info/exclude", place / "other/exclude")
    settle()
    files = watch(place)
    (place / "info").rename(place / "former")
    (place / "other").rename(place / "info")
    assert not files.same()


def test_what_was_written_in_the_very_moment_counts_as_changed_once_more(place: Path) -> None:
    (place / "config").write_text("2\n")
    assert not watch(place).same()
    settle()
    assert watch(place).same()


def test_of_folders_it_matters_what_comes_and_goes(place: Path) -> None:
    (place / "linked").symlink_to("info")
    files = Files([], [f"{place}/linked", f"{place}/none"])
    assert files.same()
    (place / "info/pack").write_text("")
    assert not files.same()
    settle()
    files = Files([], [f"{place}/linked", f"{place}/none"])
    (place / "none").mkdir()
    assert not files.same()


def asked_by(files: Files | Together, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What it asks about while nothing has changed, each as often as it does."""
    asked: list[object] = []
    lstat, stat = os.lstat, os.stat
    monkeypatch.setattr("os.lstat", lambda path: (asked.append(path), lstat(path))[1])
    monkeypatch.setattr("os.stat", lambda path, **kinds: (asked.append(path), stat(path, **kinds))[1])
    assert files.same()
    return sorted(map(str, asked))


def test_what_is_not_there_costs_no_question_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = watch(place)
    assert asked_by(files, monkeypatch) == [str(place), f"{place}/config", f"{place}/info", f"{place}/info/exclude"]


def test_several_together_are_the_same_until_something_in_one_of_them_changes(place: Path) -> None:
    def together() -> Together:
        settle()
        found = Together.of([watch(place), Files([f"{place}/config"], [f"{place}/info"])])
        assert found is not None
        return found

    assert together().same()
    for change in (
        lambda: (place / "config").write_text("2\n"),
        lambda: (place / "info/attributes").write_text(""),
        (place / "own").mkdir,
        (place / "info/pack").touch,
        (place / "config").unlink,
    ):
        files = together()
        (place / "unrelated").write_text("3\n")
        assert files.same()
        change()
        assert not files.same()


def test_several_are_not_together_while_one_is_young_or_they_saw_different_things(place: Path) -> None:
    (place / "config").write_text("2\n")
    assert Together.of([watch(place), Files([f"{place}/info/exclude"])]) is None
    settle()
    former = watch(place)
    (place / "config").write_text("3\n")
    settle()
    assert Together.of([former, watch(place)]) is None
    assert Together.of([watch(place), Files([], [f"{place}/none"])]) is None, "what is not there cannot be compared"


def test_what_several_would_ask_about_is_asked_about_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Together.of([watch(place), Files([f"{place}/config", f"{place}/info/more"], [str(place)])])
    assert files is not None
    assert asked_by(files, monkeypatch) == [str(place), f"{place}/config", f"{place}/info", f"{place}/info/exclude"]
