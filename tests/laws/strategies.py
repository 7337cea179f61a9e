"""Public states, and writes to ledgers, as Hypothesis draws them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pipeline.domain import patch as merge_patch
from pipeline.domain.versioned import Ledger

WORKSPACES = ("w1", "w2", "w3")
GROUPS = ("git", "pr", "session:s1", "session:s2", "session:s3")
FIELDS = ("x", "y", "z")

scalars = st.none() | st.integers(0, 2) | st.booleans() | st.sampled_from(["", "é\u2028", "a/b\n"])
_leaves = st.integers(0, 2) | st.booleans() | st.text(max_size=3)

# A project's state as a client holds it: no nulls, no empty objects below the entries.
_groups = st.dictionaries(
    st.sampled_from(["git", "pr", "run"]), st.dictionaries(st.sampled_from(FIELDS), _leaves, min_size=1)
)
_sessions = st.dictionaries(
    st.just("sessions"),
    st.dictionaries(
        st.sampled_from(["s1", "s2"]), st.dictionaries(st.sampled_from(FIELDS), _leaves, min_size=1), min_size=1
    ),
)
entries = st.builds(lambda groups, sessions: {**groups, **sessions}, _groups, _sessions)
states = st.dictionaries(st.sampled_from(WORKSPACES), entries)

# What may be done to a ledger: (workspace, changes), or (workspace, None) to take it out.
Write = tuple[str, list[tuple[str, dict[str, Any] | None]] | None]
_changes = st.lists(
    st.tuples(
        st.sampled_from(GROUPS),
        st.none() | st.dictionaries(st.sampled_from(FIELDS), st.none() | st.integers(0, 2), max_size=3),
    ),
    max_size=3,
)
writes = st.tuples(st.sampled_from(WORKSPACES), st.none() | _changes | _changes)
histories = st.lists(writes, max_size=25)


def written(ledger: Ledger, write: Write) -> None:
    """Do it to `ledger` as the store would: an entry is born with a name."""
    workspace, changes = write
    if changes is None:
        ledger.remove(workspace)
    else:
        born = [] if workspace in ledger.entries else [("life", {"name": workspace})]
        ledger.write(workspace, [*born, *changes])


def content(state: dict[str, Any]) -> Any:
    """What the entries of a state hold, without nulls and empty objects; an entry that holds nothing is still there."""
    return {name: merge_patch.prune(entry) for name, entry in state.items()}
