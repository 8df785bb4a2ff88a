"""Two minutes of `make soak`: the real stack under a fault every fifteen seconds."""

from __future__ import annotations

import pytest

from soak_stack import soak

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_nothing_is_lost_doubled_left_behind_or_needs_a_person() -> None:
    account = soak(minutes=2.0, every_s=15.0, seed=1, tell=print)
    print("\n".join(account.lines()))
    assert account.is_good, account.document()
    # It was no walk: work was done, and most faults found a victim.
    assert account.ends["succeeded"] >= 3
    assert len(account.struck) >= 5
