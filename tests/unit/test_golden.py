"""The golden frames, replayed by a client that knows nothing but docs/protocol.md."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import frames
from pipeline.domain.patch import merge, state_hash
from tests.golden import make

GOLDEN = json.loads(make.PATH.read_text())
Said = list[dict[str, Any]]


class Reader:
    """A client without a socket: what it gets, what it then says, what it holds."""

    def __init__(self) -> None:
        self.view = "loading"
        self.epoch: str | None = None
        self.version: int | None = None
        self.workspaces: Any = None
        self.complete: bool | None = None
        self.asked = False
        self.resyncs = 0

    def connect(self) -> Said:
        self.asked = False
        cursor = {} if self.version is None else {"epoch": self.epoch, "version": self.version}
        return [{"type": "hello"}, {"type": "subscribe", "id": 1, "project": "web", **cursor}]

    def receive(self, text: str) -> Said:
        try:
            message = frames.read_server(text)
        except frames.DecodeError:
            return []
        if isinstance(message, frames.Heartbeat):
            return self._heartbeat(message)
        if message is None or getattr(message, "id", None) != 1 or self.view == "gone":
            return []
        if isinstance(message, frames.Snapshot):
            self.workspaces, self.complete = message.workspaces, message.complete
            self.epoch, self.version = message.epoch, message.version
            self.view, self.asked = "live", False
        elif isinstance(message, frames.Delta):
            if self.version is None or message.epoch != self.epoch or message.from_ > self.version:
                return self._resync("gap")
            self.asked = False
            if message.to > self.version:
                self.workspaces, self.version = merge(self.workspaces, message.patch), message.to
        elif isinstance(message, frames.End) or (isinstance(message, frames.Error) and message.code == "not_found"):
            self.view, self.epoch, self.version, self.workspaces, self.complete = "gone", None, None, None, None
        return []

    def _heartbeat(self, heartbeat: frames.Heartbeat) -> Said:
        said: Said = [{"type": "ack", "n": heartbeat.n}]
        mark = heartbeat.subscriptions.get("1")
        if mark is None or self.version is None or self.asked:
            return said
        if mark.version > self.version:
            return said + self._resync("gap")
        if mark.version < self.version or mark.hash != state_hash(self.workspaces):
            return said + self._resync("hash")
        self.complete = mark.complete
        return said

    def _resync(self, reason: str) -> Said:
        if self.asked:
            return []
        self.asked = True
        self.resyncs += 1
        if self.resyncs == 3:
            self.view, self.epoch, self.version, reason = "degraded", None, None, "hash"
        version = {} if self.version is None else {"version": self.version}
        return [{"type": "resync", "id": 1, "reason": reason, **version}]

    def holds(self) -> dict[str, Any]:
        return {
            "view": self.view,
            "epoch": self.epoch,
            "version": self.version,
            "complete": self.complete,
            "hash": None if self.workspaces is None else state_hash(self.workspaces),
            "workspaces": self.workspaces,
        }


@pytest.mark.parametrize("sequence", GOLDEN["sequences"], ids=lambda sequence: sequence["about"])
def test_a_client_makes_of_every_golden_frame_what_the_file_says(sequence: dict[str, Any]) -> None:
    """W3, W7."""
    reader = Reader()
    for number, step in enumerate(sequence["steps"]):
        said: Said = []
        if step["do"] == "connect":
            said = reader.connect() + reader.receive(json.dumps(step["frame"]))
        elif step["do"] == "receive":
            said = reader.receive(step.get("text") or json.dumps(step["frame"]))
        assert sorted(said, key=str) == sorted(step["says"], key=str), (number, step)
        assert reader.holds() == step["then"], (number, step)


def test_the_golden_frames_are_what_the_session_sends() -> None:
    """A change of the protocol shows here: `python -m tests.golden.make`, and read the difference."""
    assert json.loads(make.text()) == GOLDEN


def test_every_type_of_frame_and_every_reason_is_in_the_golden_frames() -> None:
    seen = [step["frame"] for sequence in GOLDEN["sequences"] for step in sequence["steps"] if "frame" in step]
    assert {kind.__struct_config__.tag for kind in frames.SERVER} <= {frame["type"] for frame in seen}
    assert set(frames.REASONS) <= {frame.get("reason") for frame in seen}
