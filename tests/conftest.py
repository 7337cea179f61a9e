"""How much the property tests try: ``ci`` the same examples each time, ``deep`` many and others each time.

And the PostgreSQL server that a test process starts once it has a test that wants it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, Phase, settings

if TYPE_CHECKING:
    from tests.postgres import Server

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    stateful_step_count=40,
    suppress_health_check=_SLOW,
)
settings.register_profile(
    "deep",
    deadline=None,
    max_examples=1000,
    stateful_step_count=100,
    suppress_health_check=_SLOW,
)
# For the mutation gate: a failure is enough, nobody reads the example.
settings.register_profile("gate", settings.get_profile("ci"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A server of its own for this test process; each test asks it for a database."""
    from tests.postgres import running

    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """What a test's process logs to is closed with the test, so that the next one must not be left with it."""
    yield
    structlog.reset_defaults()
