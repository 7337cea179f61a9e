"""The soak itself, for a short while: it runs, measures, draws and judges."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.soak import __main__ as command
from tests.soak import draw
from tests.soak.measure import GROUPS
from tests.soak.run import SETTINGS, Outcome, pictures, soak

MINUTES = 0.3
EVERY_S = 0.8
MEMBERS = {"aggregator", "reconciler", "dispatcher", "sources", "gateway-0", "worker-0", "supervisord", "watchdog"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("soak")
    found = soak(MINUTES, out, every_s=EVERY_S, settings=SETTINGS)
    assert json.loads((out / "figures.json").read_text()) == found.report()
    return found


def test_a_short_soak_measures_every_process_the_store_and_the_disk(outcome: Outcome) -> None:
    """O3: each sort of figure is there, with points from all of the run."""
    named = {one.series.name: one for one in outcome.verdicts}
    for group, kinds in GROUPS.items():
        for kind in kinds:
            wanted = {kind} if group in ("store", "disk") else {f"{name} {kind}" for name in MEMBERS}
            assert wanted <= named.keys()
    for one in outcome.verdicts:
        times = [at for at, _ in one.series.points]
        assert len(times) > 5
        assert times == sorted(times)
    assert named["gateway-0 rss"].most > 10
    assert named["entries"].most > 10
    assert named["catalog"].most > 0.05
    assert named["gateway-0 sockets"].most > 2


def test_a_short_soak_does_all_that_happens_in_days(outcome: Outcome) -> None:
    assert outcome.failures == []
    for what in ("events", "workspaces born", "worktrees made", "edits", "clients", "delta frames", "taps"):
        assert outcome.done[what] > 0, what
    assert outcome.done["workspaces archived"] > 0


def test_the_table_says_of_each_figure_whether_it_levels_off(outcome: Outcome) -> None:
    table = outcome.table()
    assert "aggregator rss" in table
    assert ("All levels off." in table) is outcome.well


def test_there_is_a_picture_for_each_group_of_figures(outcome: Outcome, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        pytest.skip(draw.HOW)
    drawn = pictures(outcome, tmp_path)
    assert {path.stem for path in drawn} == set(GROUPS)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_without_matplotlib_it_is_said_how_to_get_it_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as ended:
        command.main(["--minutes", "1", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "pip install --group soak" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--minutes", "-1"], ["--minutes", "soon"], ["--every", "0"]])
def test_what_is_no_time_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(wrong)
    assert ended.value.code == 2
    assert wrong[0] in capsys.readouterr().err
