"""The board's words say the same as the domain where both must."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.domain.status import ATTENTION


def test_the_board_puts_first_what_the_domain_puts_first() -> None:
    words = (Path(__file__).parents[2] / "gateway/web/words.js").read_text()
    told = re.search(r"export const ATTENTION = (\[.*?\n\]);", words, re.DOTALL)
    assert told is not None
    assert tuple(map(tuple, json.loads(re.sub(r",(\s*\])", r"\1", told[1])))) == ATTENTION
