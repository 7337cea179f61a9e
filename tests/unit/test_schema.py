"""The schema documents: made of the types, the same in docs/, and true of what is sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway import schema
from pipeline import frames
from pipeline.domain.patch import merge
from tests.board import Board
from tests.golden import make

DOCS = Path(__file__).parents[2] / "docs" / "schema"
GOLDEN = json.loads(make.PATH.read_text())
STEPS = [step for sequence in GOLDEN["sequences"] for step in sequence["steps"]]


def validator(name: str) -> jsonschema.Draft202012Validator:
    whole = schema.json_schema()
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]})


@pytest.mark.parametrize("name", [schema.JSON_SCHEMA, schema.ASYNCAPI])
def test_the_documents_in_docs_are_those_that_the_types_make(name: str, tmp_path: Path) -> None:
    """`python -m gateway.schema docs/schema` writes them anew."""
    told = subprocess.run(
        [sys.executable, "-m", "gateway.schema", str(tmp_path / "new")], capture_output=True, text=True, check=True
    )
    assert name in told.stdout
    assert (tmp_path / "new" / name).read_text() == (DOCS / name).read_text()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema.json_schema())
    for one in schema.json_schema()["$defs"].values():
        jsonschema.Draft202012Validator.check_schema(one)


def test_every_golden_frame_of_a_known_type_is_what_the_schema_says() -> None:
    whole, known = validator("FromServer"), {schema._tag(kind) for kind in frames.SERVER}
    checked = set()
    for step in STEPS:
        frame = step.get("frame")
        if frame is not None and frame["type"] in known:
            whole.validate(frame)
            checked.add(frame["type"])
    assert checked == known


def test_every_golden_message_of_a_client_is_what_the_schema_says() -> None:
    whole = validator("FromClient")
    said = [message for step in STEPS for message in step["says"]]
    for message in said:
        whole.validate(message)
    assert {message["type"] for message in said} == {"hello", "subscribe", "resync", "ack"}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("Delta", {"type": "delta", "id": 1, "epoch": "e", "from": 1, "patch": {}}),
        (
            "Delta",
            {"type": "delta", "id": 1, "epoch": "e", "from": 1, "to": 2, "patch": {"w1": {"git": {"files": "3"}}}},
        ),
        ("Entry", {"git": {"files": None}}),
        ("Entry", {"git": None}),
        ("Entry", {"sessions": {"s1": None}}),
        ("Entry", {"life": {"phase": 7}}),
        ("EntryPatch", {"git": 7}),
        ("FromClient", {"type": "resync", "id": 1, "reason": "because"}),
        ("FromClient", {"type": "subscribe", "id": -1, "project": "web"}),
        ("Event", {"project": "web", "workspace": "w1", "group": "life", "fields": {}, "colour": "blue"}),
    ],
)
def test_what_is_wrong_is_wrong_by_the_schema_too(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator(name).validate(bad)


def test_what_a_later_release_may_say_is_right_by_the_schema() -> None:
    """W7: new fields, and new values where there is a list of known ones."""
    validator("Entry").validate({"life": {"phase": "hibernating"}, "weather": {"sky": "clear"}, "git": {"stashes": 2}})
    validator("FromServer").validate({"type": "end", "id": 1, "code": "moved", "to": "elsewhere"})
    validator("EntryPatch").validate({"pr": {"state": None}, "git": None, "sessions": {"s1": None}})


def test_the_bodies_of_http_are_what_the_schema_says() -> None:
    board = Board()
    ledger = board.project()
    ledger.write("w1", [("life", {"name": "fix", "phase": "ready"}), ("session:s1", {"state": "working"})])
    before = ledger.version
    ledger.write("w1", [("git", {"files": 1}), ("session:s1", None)])
    board.changed()
    state, changes = json.loads(board.shelves["web"].state()), json.loads(board.shelves["web"].changes(before) or b"")
    validator("State").validate(state)
    validator("Changes").validate(changes)
    assert merge({"w1": {"life": {"name": "fix", "phase": "ready"}}}, changes["patch"]) == state["workspaces"] | {
        "w1": {**state["workspaces"]["w1"], "sessions": {}}
    }


def test_the_asyncapi_document_is_valid() -> None:
    rules = json.loads((Path(__file__).parent / "vendor" / "asyncapi-3.0.0.json").read_text())
    valid = jsonschema.Draft7Validator(rules)
    assert [error.message for error in valid.iter_errors(schema.asyncapi())] == []
    assert not valid.is_valid(schema.asyncapi() | {"channles": {}})


def test_the_asyncapi_document_refers_to_nothing_that_is_not_there() -> None:
    document = schema.asyncapi()

    def refers(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [node["$ref"]] if "$ref" in node else [ref for inner in node.values() for ref in refers(inner)]
        return [ref for inner in node for ref in refers(inner)] if isinstance(node, list) else []

    found = refers(document)
    for ref in found:
        node: Any = document
        for part in ref.removeprefix("#/").split("/"):
            node = node[part]
        assert isinstance(node, dict)
    assert len(found) > 50
    assert document["asyncapi"] == "3.0.0"
    spoken = {one["$ref"].rpartition("/")[2] for one in document["operations"]["tell"]["messages"]}
    assert spoken == {schema._tag(kind) for kind in frames.SERVER}
