"""The protocol for programs: a JSON Schema and an AsyncAPI document, made of the types that the code itself uses.

`python -m gateway.schema docs/schema` writes both; ``GET /v1/schema`` serves them. What a server sends is described as
open: a client must take fields that are not here, and values that are not among the examples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, get_type_hints

import msgspec
from msgspec import UNSET, Struct, UnsetType

from gateway import public
from pipeline import frames
from pipeline.bridges.event import Event
from pipeline.domain.model import KINDS, Status

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
REF: Final = "#/$defs/{name}"
JSON_SCHEMA: Final = "treewire.schema.json"
ASYNCAPI: Final = "asyncapi.json"
VERSION: Final = f"{frames.PROTOCOL}.0.0"
TAG: Final = "type"
HTTP: Final = (frames.State, frames.Changes, frames.Problem)

Schema = dict[str, Any]


@cache
def documents() -> dict[str, Schema]:
    """Each document by its name."""
    return {JSON_SCHEMA: json_schema(), ASYNCAPI: asyncapi()}


def json_schema() -> Schema:
    """Every message and every body as ``$defs``; the whole accepts any message of the stream."""
    known = definitions(REF)
    return {
        "$schema": DIALECT,
        "$id": f"urn:treewire:protocol:{frames.PROTOCOL}",
        "title": f"The treewire protocol, version {frames.PROTOCOL}",
        "anyOf": [{"$ref": REF.format(name=name)} for name in ("FromClient", "FromServer")],
        "$defs": known,
    }


def asyncapi() -> Schema:
    """The stream as AsyncAPI 3 has it, from the server's side."""
    channel = "#/channels/stream"

    def operation(action: str, summary: str, kinds: Iterable[type[Struct]]) -> Schema:
        messages = [{"$ref": f"{channel}/messages/{_tag(kind)}"} for kind in kinds]
        return {"action": action, "summary": summary, "channel": {"$ref": channel}, "messages": messages}

    def message(kind: type[Struct]) -> Schema:
        summary = {"summary": doc} if (doc := _doc(kind)) else {}
        return {
            "name": _tag(kind),
            **summary,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        }

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "treewire",
            "version": VERSION,
            "description": "Follow projects over one WebSocket: a snapshot first, then deltas, with proof of both.",
        },
        "servers": {
            "local": {
                "host": "127.0.0.1:8787",
                "protocol": "ws",
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "defaultContentType": "application/json",
        "channels": {
            "stream": {
                "address": "/v1/stream",
                "description": f"WebSocket with the subprotocol {frames.SUBPROTOCOL}; messages are JSON text frames.",
                "messages": {
                    _tag(kind): {"$ref": f"#/components/messages/{_tag(kind)}"}
                    for kind in (*frames.CLIENT, *frames.SERVER)
                },
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "hear": operation("receive", "What a client says", frames.CLIENT),
            "tell": operation("send", "What a server says", frames.SERVER),
        },
        "components": {
            "messages": {_tag(kind): message(kind) for kind in (*frames.CLIENT, *frames.SERVER)},
            "schemas": definitions("#/components/schemas/{name}"),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def definitions(ref: str) -> dict[str, Schema]:
    """Every message and body by its name; `ref`: how they refer to each other."""
    _, told = msgspec.json.schema_components((*frames.SERVER, *HTTP, _entry(False), _entry(True)), ref_template=ref)
    _, heard = msgspec.json.schema_components((*frames.CLIENT, Event), ref_template=ref)
    known = {**heard, **{name: _opened(schema) for name, schema in told.items()}}

    def refer(name: str) -> Schema:
        return {"$ref": ref.format(name=name)}

    entry, patch = refer("Entry"), refer("EntryPatch")
    workspaces: Schema = {"type": "object", "additionalProperties": entry}
    changed: Schema = {"type": "object", "additionalProperties": {"anyOf": [patch, {"type": "null"}]}}
    for name in ("Snapshot", "State"):
        known[name]["properties"]["workspaces"] = workspaces
    for name in ("Delta", "Changes"):
        known[name]["properties"]["patch"] = changed
    known["FromClient"] = {"anyOf": [refer(kind.__name__) for kind in frames.CLIENT]}
    known["FromServer"] = {"anyOf": [refer(kind.__name__) for kind in frames.SERVER]}
    return {name: known[name] for name in sorted(known)}


def _entry(patch: bool) -> type[Struct]:
    """What a workspace shows; in a patch, null clears a field, a group, a session."""
    suffix = "Patch" if patch else ""
    clears: Any = None if patch else UnsetType

    def optional(name: str, kind: Any) -> tuple[str, Any, Any]:
        return name, kind | UnsetType | clears, UNSET

    def group(name: str, model: type[Struct]) -> type[Struct]:
        hints = get_type_hints(model)
        fields = [optional(field, _without_none(hints[field])) for field in model.__struct_fields__]
        assert {"changed_at", *hints} >= public.ALLOWED[name] >= {field for field, *_ in fields}
        made = msgspec.defstruct(model.__name__ + suffix, [*fields, optional("changed_at", int)])
        made.__doc__ = model.__doc__
        return made

    groups: Mapping[str, type[Struct]] = {**KINDS, "status": Status}
    made = {name: group(name, model) for name, model in groups.items()}
    session: Any = made.pop("session")
    sessions: Any = dict[str, session | None] if patch else dict[str, session]
    fields = [*(optional(name, kind) for name, kind in made.items()), optional(public.SESSIONS, sessions)]
    return msgspec.defstruct("Entry" + suffix, fields)


def _without_none(hint: Any) -> Any:
    """``int | None`` → ``int``: absent and null are said apart here."""
    kinds = [kind for kind in hint.__args__ if kind is not type(None)]
    found = kinds[0]
    for kind in kinds[1:]:
        found |= kind
    return found


def _opened(schema: Any) -> Any:
    """Closed lists of values become examples, save the one that names the message."""
    if isinstance(schema, list):
        return [_opened(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    opened = {name: inner if name == TAG else _opened(inner) for name, inner in schema.items()}
    if isinstance(known := opened.pop("enum", None), list):
        opened.update(type="string", examples=known)
    return opened


def _tag(kind: type[Struct]) -> str:
    return str(kind.__struct_config__.tag)


def _doc(kind: type[Struct]) -> str:
    return " ".join((kind.__doc__ or "").split())


def write(folder: Path) -> list[Path]:
    """Write each document into this folder; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, document in documents().items():
        path = folder / name
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.schema", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the documents, for example docs/schema")
    for path in write(parser.parse_args().folder):
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
