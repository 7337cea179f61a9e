"""Terminal rows become looks at `terminal`."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, stamp_of, value_of
from pipeline.domain.model import Look, Stamp, Terminal


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """The workspace's terminals. Raises `RowError`.

    Activity is not written each time, so the row is true as of its own stamp, not as of the reading: a census must
    not undo the activity that went over the bus since. Only across clocks does the reading's stamp stand in.
    """
    own = stamp_of(row)
    if stamp is None or stamp.clock == own.clock:
        stamp = own
    return look_of(place, "terminal", value_of(Terminal, row), row, stamp)
