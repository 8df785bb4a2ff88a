"""Successive halving as Tune's scheduler does it, and after a restart the same."""

from __future__ import annotations

import random
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from searched import trial
from segfleet_jobs.rungs import Rungs


def make_reports(seed: int, trials: int = 9, validations: int = 8) -> list[tuple[int, int, float]]:
    """Validations of trials side by side, in an order that keeps each trial's own."""
    lot = random.Random(seed)
    left = dict.fromkeys(range(1, trials + 1), 1)
    reports = []
    while left:
        number = lot.choice(sorted(left))
        reports.append((number, left[number], round(lot.random(), 3)))
        left[number] += 1
        if left[number] > validations:
            del left[number]
    return reports


def judge_all(rungs: Rungs, reports: list[tuple[int, int, float]]) -> list[str | None]:
    return [rungs.judge(*report) for report in reports]


def recorded(reports: list[tuple[int, int, float]]) -> list[dict[str, Any]]:
    """What the service has stored after these, in this order."""
    trials = {number: trial(number, "running") for number, _, _ in reports}
    for at, (number, validation, value) in enumerate(reports):
        report = {"validation": validation, "step": 2 * validation, "value": value, "at": float(at)}
        trials[number]["reports"].append(report)
    return [trials[number] for number in sorted(trials)]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("cut", range(0, 72, 7))
def test_a_new_driver_comes_to_all_the_verdicts_of_the_undisturbed_one(mode: str, cut: int) -> None:
    reports = make_reports(cut)
    undisturbed = Rungs(mode, 1, 2)
    for known in range(len(reports) + 1):
        undisturbed.take(recorded(reports[:known]))
    assert undisturbed.verdicts
    again = Rungs(mode, 1, 2)
    again.take(recorded(reports[:cut]))
    again.take(recorded(reports))
    assert again.verdicts == undisturbed.verdicts


class Known:
    """A trial as Tune's scheduler knows it."""

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)


@pytest.mark.parametrize(("mode", "grace", "reduction"), [("max", 1, 2), ("min", 1, 4), ("max", 2, 3)])
def test_it_decides_as_tunes_own_scheduler(mode: str, grace: int, reduction: int) -> None:
    reports = make_reports(grace + reduction, trials=12, validations=20)
    scheduler = AsyncHyperBandScheduler("validation", "value", mode, 20, grace, reduction, stop_last_trials=False)
    stops = []
    for number, validation, value in reports:
        known = Known(number)
        if validation == 1:
            scheduler.on_trial_add(None, known)
        action = scheduler.on_trial_result(None, known, {"validation": validation, "value": value})
        stops.append(action == TrialScheduler.STOP)
    assert any(stops)
    assert [why is not None for why in judge_all(Rungs(mode, grace, reduction), reports)] == stops


def test_the_worse_half_ends_at_each_rung_and_hears_why() -> None:
    rungs = Rungs("max", 1, 2)
    assert judge_all(rungs, [(1, 1, 0.5), (2, 1, 0.7)]) == [None, None], "the first on a rung has nobody beside it"
    why = rungs.judge(3, 1, 0.31)
    assert why == "ended by asha at validation 1: 0.3100 is below 0.6000, the bound of the best 50% of 2 trials"
    assert rungs.judge(2, 3, 0.0) is None, "between two rungs nobody ends"
    assert rungs.judge(1, 1, 0.0) is None, "a validation that was told twice counts once"


def test_less_is_better_where_the_search_says_so() -> None:
    rungs = Rungs("min", 1, 4)
    assert judge_all(rungs, [(1, 1, 0.2), (2, 1, 0.1)]) == [None, None]
    why = rungs.judge(3, 1, 0.9)
    assert why is not None
    assert "0.9000 is above 0.1250, the bound of the best 25% of 2 trials" in why


def test_nobody_ends_within_the_grace_and_a_trial_without_a_value_goes_on() -> None:
    rungs = Rungs("max", 3, 2)
    assert judge_all(rungs, [(1, 1, 0.9), (2, 1, 0.1), (1, 2, 0.9), (2, 2, 0.1)]) == [None] * 4
    assert rungs.judge(1, 3, 0.9) is None
    assert rungs.judge(2, 3, None) is None
    assert rungs.judge(2, 4, 0.1) is not None


def test_a_grace_beyond_the_last_validation_ends_nobody() -> None:
    rungs = Rungs("max", 9, 2)
    assert judge_all(rungs, make_reports(1, validations=4)) == [None] * 36


def test_a_trial_without_a_value_on_a_rung_enters_at_the_next_one() -> None:
    rungs = Rungs("max", 1, 2)
    assert judge_all(rungs, [(1, 1, 0.5), (1, 2, 0.5)]) == [None, None]
    assert [rungs.judge(2, validation, None) for validation in (1, 2, 3)] == [None] * 3
    assert rungs.judge(2, 4, 0.1) is None, "the first on the third rung"
