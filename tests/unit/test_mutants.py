"""The mutation gate is in step with the source, which its own run takes minutes to say."""

from __future__ import annotations

from tests.laws.mutants import MUTANTS, ROOT


def test_each_seeded_bug_has_its_place_in_the_source_and_only_one() -> None:
    lost = {
        mutant.name: mutant.old
        for mutant in MUTANTS
        if (ROOT / "pipeline" / "domain" / f"{mutant.module}.py").read_text().count(mutant.old) != 1
    }
    assert not lost
