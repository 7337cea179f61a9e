"""JSON Merge Patch (RFC 7396) over entries, and the canonical form that is hashed.

In the state an absent field means null; in a patch null clears. There is no `conflate` here: two patches
cannot be joined without knowing what lay below (a delete followed by a re-creation), so conflation is
`Ledger.since(cursor)`, which knows.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Final

import msgspec

Json = Any

HASH_BITS: Final = 64
_MASK = (1 << HASH_BITS) - 1
_canonical = msgspec.json.Encoder(order="sorted").encode


def merge(target: Json, patch: Json) -> Json:
    """Apply `patch` to `target` and return the result; neither argument is changed."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def diff(old: Json, new: Json) -> dict[str, Json]:
    """The smallest patch that turns the object `old` into the object `new` (neither holds nulls)."""
    patch: dict[str, Json] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := diff(before, value):
                patch[key] = inner
        elif before != value or type(before) is not type(value):
            patch[key] = value
    return patch


def prune(state: Json) -> Json:
    """Leave out nulls and objects without fields, at every depth: what remains is the canonical content."""
    if not isinstance(state, dict):
        return state
    kept = {key: prune(value) for key, value in state.items() if value is not None}
    return {key: value for key, value in kept.items() if value != {}}


def canonical(entry: Json) -> bytes:
    """Sorted keys, compact separators, UTF-8 unescaped, no nulls, no empty objects."""
    return _canonical(prune(entry))


def entry_hash(workspace: str, canonical_entry: bytes) -> int:
    """One entry's share of the state hash: the first 8 bytes of sha256 over ``[workspace, entry]``."""
    digest = sha256(b"[" + _canonical(workspace) + b"," + canonical_entry + b"]").digest()
    return int.from_bytes(digest[:8], "big")


def show_hash(total: int) -> str:
    """A state hash as it travels: 16 hex digits."""
    return f"{total & _MASK:016x}"


def state_hash(state: dict[str, Json]) -> str:
    """The hash of a whole project, computed from nothing but its public state (as a client does)."""
    return show_hash(sum(entry_hash(name, canonical(entry)) for name, entry in state.items()))
