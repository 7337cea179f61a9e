"""The files that are shipped to be copied: what reads them finds nothing to complain about."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
UNIT = EXAMPLES / "treewire.service"


def unit() -> configparser.SectionProxy:
    parsed = configparser.RawConfigParser()
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(UNIT.read_text())
    return parsed["Service"]


@pytest.mark.parametrize("directive", ["ExecStart", "ExecStop"])
def test_the_unit_runs_commands_that_there_are(directive: str) -> None:
    program, *arguments = unit()[directive].split()
    assert Path(program).name == "treewire"
    assert CliRunner().invoke(main, [*arguments, "--help"]).exit_code == 0
    assert not {"-d", "--detach"} & set(arguments), "systemd would lose sight of it"


def test_the_unit_comes_back_from_a_kill_but_not_from_wrong_settings_or_from_down() -> None:
    """`treewire down` ends supervisord with 0, and wrong settings end `up` with 2."""
    service = unit()
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["KillMode"] == "mixed"
    assert service["WorkingDirectory"] == "/"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copied = tmp_path / "treewire.service"
    copied.write_text(UNIT.read_text().replace("%h/.local/bin/treewire", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", "--recursive-errors=no", copied],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd-analyze finds no place to work in")
    assert (done.returncode, done.stderr) == (0, "")
