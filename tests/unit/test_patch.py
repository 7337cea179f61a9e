"""JSON Merge Patch, the canonical form and the state hash."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import patch
from tests.laws.strategies import states

GOLDEN = Path(__file__).parents[1] / "golden" / "hash.json"

# The test cases of RFC 7396, appendix A: original, patch, result.
VECTORS: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("original", "change", "result"), VECTORS)
def test_merge_keeps_to_the_vectors_of_rfc_7396(original: Any, change: Any, result: Any) -> None:
    before = deepcopy(original), deepcopy(change)
    assert patch.merge(original, change) == result
    assert (original, change) == before, "merge changed its arguments"


@given(states, states)
def test_merging_a_difference_gives_the_new_state(old: Any, new: Any) -> None:
    assert patch.merge(old, patch.diff(old, new)) == new


@given(states)
def test_a_state_does_not_differ_from_itself(state: Any) -> None:
    assert patch.diff(state, deepcopy(state)) == {}


def test_a_difference_names_only_what_changed() -> None:
    old = {"git": {"files": 1, "ahead": 2}, "run": {"state": "running"}}
    new = {"git": {"files": 3, "ahead": 2}, "pr": {"number": 1}}
    assert patch.diff(old, new) == {"run": None, "git": {"files": 3}, "pr": {"number": 1}}


def test_a_number_that_became_a_truth_value_differs() -> None:
    assert patch.diff({"a": 1}, {"a": True}) == {"a": True}


def test_the_canonical_form_is_sorted_compact_and_without_nulls_or_empty_objects() -> None:
    entry = {"git": {"head": None}, "b": {"y": 1, "x": "é/\u2028"}, "a": None, "sessions": {"s": {"z": {}}}}
    assert patch.canonical(entry) == '{"b":{"x":"é/\u2028","y":1}}'.encode()


@pytest.mark.parametrize("vector", json.loads(GOLDEN.read_text()), ids=lambda vector: vector["about"])
def test_the_hash_is_the_one_that_every_client_computes(vector: dict[str, Any]) -> None:
    state = vector["state"]
    assert {name: patch.canonical(entry).decode() for name, entry in state.items()} == vector["canonical"]
    assert patch.state_hash(state) == vector["hash"]


@given(states)
def test_the_hash_does_not_depend_on_the_order_of_keys(state: dict[str, Any]) -> None:
    turned = {name: dict(reversed(entry.items())) for name, entry in reversed(state.items())}
    assert patch.state_hash(turned) == patch.state_hash(state)


@given(states, st.sampled_from(["w1", "w2", "w9"]))
def test_the_hash_sees_every_entry(state: dict[str, Any], name: str) -> None:
    less = {other: entry for other, entry in state.items() if other != name}
    assert (patch.state_hash(less) == patch.state_hash(state)) == (name not in state)


def test_the_hash_sees_which_workspace_an_entry_belongs_to() -> None:
    entry = {"life": {"name": "one"}}
    assert patch.state_hash({"w1": entry}) != patch.state_hash({"w2": entry})


def test_a_hash_is_shown_as_sixteen_hex_digits() -> None:
    assert patch.show_hash(0) == "0" * 16
    assert patch.show_hash((1 << 64) + 10) == "000000000000000a"
    assert patch.show_hash(-1) == "f" * 16
