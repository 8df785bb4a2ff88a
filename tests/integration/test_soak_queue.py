"""The short form of `make soak-queue`."""

from __future__ import annotations

import pytest

from factories import POSTGRES
from soak_queue import soak

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("database", ["sqlite", *(["postgres"] if POSTGRES else [])])
def test_no_job_is_lost_doubled_or_stuck_under_kills(database: str) -> None:
    outcome = soak(database, jobs=100, kills=25, seed=7)
    assert outcome.is_good, str(outcome)
    assert outcome.kills >= 25
    assert outcome.ends["succeeded"] > 60
