"""Trials in order."""

from __future__ import annotations

from typing import Any

import pytest

from searching import recorded
from segfleet.leaderboard import By, leaderboard, pareto, rank, value_per_hour

# Patch 8 is best and dear, patch 32 is fast and cheap, 16 between; 4 is beaten in everything, 5 has failed, 6 waits.
TRIALS = [
    recorded(1, best_value=0.60, worker_seconds=7200.0, images_per_s=2.0),
    recorded(2, best_value=0.55, worker_seconds=1800.0, images_per_s=8.0),
    recorded(3, best_value=0.40, worker_seconds=450.0, images_per_s=30.0, state="stopped", why="asha"),
    recorded(4, best_value=0.35, worker_seconds=3600.0, images_per_s=7.0),
    recorded(5, best_value=0.90, worker_seconds=10.0, images_per_s=99.0, state="failed"),
    recorded(6, state="waiting"),
    recorded(7, kind="final", best_value=0.95, worker_seconds=10.0, images_per_s=99.0),
]


@pytest.mark.parametrize(
    ("by", "mode", "numbers"),
    [
        ("value", "max", [1, 2, 3, 4, 5, 6]),
        ("cost", "max", [3, 2, 4, 1, 5, 6]),
        ("speed", "max", [3, 2, 4, 1, 5, 6]),
        ("value", "min", [4, 3, 2, 1, 5, 6]),
        ("cost", "min", [3, 2, 4, 1, 5, 6]),
    ],
)
def test_orders(by: By, mode: str, numbers: list[int]) -> None:
    assert [trial["number"] for trial in rank(TRIALS, mode, by)] == numbers
    assert [trial["number"] for trial in rank(reversed(TRIALS), mode, by)] == numbers


def test_of_equals_the_lower_number_is_first() -> None:
    equal = [recorded(n, best_value=0.5, worker_seconds=float(9 - n)) for n in (3, 1, 2)]
    assert [trial["number"] for trial in rank(equal)] == [1, 2, 3]


def test_the_front_is_what_nothing_beats() -> None:
    assert pareto(TRIALS) == {1, 2, 3}
    twins = [recorded(n, best_value=0.5, images_per_s=3.0) for n in (1, 2)]
    assert pareto([*twins, recorded(3, best_value=0.5, images_per_s=2.9)]) == {1, 2}
    assert pareto(twins, "min") == {1, 2}
    assert pareto([recorded(1, best_value=0.5)]) == frozenset()
    assert pareto(TRIALS, "min") == {3, 4}


def test_a_standing_has_its_places_in_all_orders() -> None:
    standings = {standing.trial["number"]: standing for standing in leaderboard(TRIALS, by="speed")}
    assert list(standings) == [3, 2, 4, 1, 5, 6]
    assert standings[1].places == {"value": 1, "cost": 4, "speed": 4}
    assert standings[3].places == {"value": 3, "cost": 1, "speed": 1}
    assert standings[5].places == standings[6].places == {"value": None, "cost": None, "speed": None}
    assert standings[2].value_per_hour == pytest.approx(1.1)
    assert [number for number, standing in standings.items() if standing.is_pareto] == [3, 2, 1]


@pytest.mark.parametrize("changes", [{}, {"best_value": 0.5}, {"worker_seconds": 5.0}])
def test_without_value_or_time_there_is_no_rate(changes: dict[str, Any]) -> None:
    assert value_per_hour(recorded(1, **changes)) is None
