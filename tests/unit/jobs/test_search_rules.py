"""What a search decides from its recorded trials alone."""

from __future__ import annotations

import pytest

from searched import make_search, trial
from segfleet_jobs import search_rules as rules


def test_the_best_is_the_highest_of_a_trial_that_has_not_failed_and_of_equals_the_first() -> None:
    trials = [
        trial(4, "succeeded", (0.5,)),
        trial(1, "failed", (0.9,)),
        trial(2, "stopped", (0.5, 0.3)),
        trial(3, "succeeded", (None,)),
        trial(9, "succeeded", (0.99,), kind="final"),
    ]
    best = rules.best_of(trials, "max")
    assert best is not None
    assert best["number"] == 2
    assert rules.best_of(trials[1:2], "max") is None


def test_less_is_better_where_the_search_says_so() -> None:
    trials = [trial(number, best_value=value) for number, value in ((1, 0.4), (2, 0.2), (3, 0.2))]
    best = rules.best_of(trials, "min")
    assert best is not None
    assert best["number"] == 2


def test_a_search_ends_with_its_number_of_trials_whatever_became_of_them() -> None:
    search = make_search().search
    trials = [trial(1, "failed"), trial(2, "running"), trial(3, "succeeded", (0.1,))]
    assert rules.why_ended(search, trials, 4) is None
    assert rules.why_ended(search, trials, 3) == "all 3 trials are done"


def test_patience_counts_the_trials_that_ended_after_the_best() -> None:
    search = make_search(patience=2).search
    trials = [trial(1, "succeeded", (0.3,)), trial(2, "succeeded", (0.6,)), trial(3, "stopped", (0.1,))]
    more = [*trials, trial(4, "failed"), trial(5, "running", (0.2,))]
    assert rules.why_stalled(search, more) is None, "neither failed ones nor running ones count"
    ended = [*more, trial(6, "succeeded", (0.6,))]
    assert rules.why_stalled(search, ended) == "2 trials after trial 2 were no better"


def test_worker_hours_are_summed_over_the_trials() -> None:
    search = make_search(max_worker_hours=0.5).search
    trials = [trial(number, worker_seconds=899.0) for number in (1, 2)]
    assert rules.why_ended(search, trials, 9) is None
    trials.append(trial(3, "running", worker_seconds=2.0))
    assert rules.why_ended(search, trials, 9) == "the budget of 0.5 worker-hours is used up"


def test_the_budget_of_steps_holds_even_if_all_that_runs_goes_to_its_end() -> None:
    search = make_search(max_steps=20).search
    stopped, running = trial(1, "stopped", (0.1,)), trial(2, "running", (0.1,))
    assert rules.fits_budget(search, [stopped, running], 8), "2 + 8 + 8"
    assert not rules.fits_budget(search, [stopped, running], 11)
    assert rules.fits_budget(make_search().search, [stopped, running], 10**9)


@pytest.mark.parametrize(("num_trials", "allowed"), [(1, 3), (12, 3), (13, 4), (20, 5)])
def test_a_quarter_of_the_trials_may_fail_and_at_least_three(num_trials: int, allowed: int) -> None:
    search = make_search().search
    assert rules.allowed_failures(search, num_trials) == allowed
    failed = [trial(number, "failed", why="loss is nan") for number in range(1, allowed + 1)]
    assert rules.too_many_failures(failed, allowed) is None
    message = rules.too_many_failures([*failed, trial(50, "failed", why="out of memory")], allowed)
    assert message is not None
    assert "50)" in message
    assert "out of memory" in message
    assert rules.allowed_failures(make_search(max_failures=0).search, num_trials) == 0


def test_progress_says_what_is_done_what_runs_the_best_and_the_time_left() -> None:
    trials = [
        trial(1, "succeeded", (0.2, 0.4), worker_seconds=60.0),
        trial(2, "stopped", (0.1,), worker_seconds=20.0),
        trial(3, "running", (0.3,)),
        trial(4, "waiting"),
    ]
    told = rules.progress(make_search().search, trials, 6, running=2, workers=2, parallel=2)
    assert told["phase"] == "searching, 2 running, best so far: trial 1 with miou 0.4000"
    assert (told["step"], told["num_steps"]) == (2, 6)
    assert told["trials"] == {
        "done": 2,
        "running": 2,
        "of": 6,
        "by_state": {"running": 1, "stopped": 1, "succeeded": 1, "waiting": 1},
    }
    assert told["eta_s"] == 40.0, "four trials of 20 s, two at a time"
    assert "eta_s" not in rules.progress(make_search().search, trials[2:], 6, running=2, workers=1, parallel=1)


def test_a_search_that_has_run_all_its_trials_says_so() -> None:
    trials = [trial(1, "succeeded"), trial(2, "stopped"), {**trial(3, "succeeded"), "kind": "final"}]
    assert rules.all_ended(trials) == {"step": 2, "num_steps": 2, "eta_s": 0.0}


@pytest.mark.parametrize(("eta_s", "said"), [(30.0, "1 min"), (3000.0, "50 min"), (7300.0, "2 h")])
def test_the_time_left_is_said_in_minutes_or_hours(eta_s: float, said: str) -> None:
    told = rules.progress(make_search().search, [trial(1, "running")], 3, running=1, workers=1, parallel=1)
    assert rules.in_words(told) == "0 of 3 done, 1 running"
    assert rules.in_words(told | {"eta_s": eta_s}) == f"0 of 3 done, 1 running, about {said} left"
