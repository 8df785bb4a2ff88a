"""The director of a search: what it starts, what it records, and that a new one goes on where the old one was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from searched import FakeAttempt, FakeHeart, make_grant, make_search, trial
from segfleet.spec.kinds import SearchSpec
from segfleet_jobs.search_board import Board
from segfleet_jobs.trial_task import stop_sign, trial_folder


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_board(
    folder: Path, attempt: FakeAttempt, spec: SearchSpec | None = None, heart: FakeHeart | None = None, **more: Any
) -> Board:
    return Board(make_grant(folder), spec or make_search(), attempt, heart or FakeHeart(), 2, **more)  # type: ignore[arg-type]


def next_of(board: Board) -> int | str | None:
    try:
        return board.next_trial()
    except StopIteration:
        return "end"


def outcome(state: str, why: str = "", seconds: float = 5.0) -> dict[str, Any]:
    return {"outcome": state, "why": why, "worker_seconds": seconds}


def play(attempt: FakeAttempt, number: int, *values: float) -> None:
    """The trial runs and reports."""
    attempt.trial(number).state("running")
    for i, value in enumerate(values, 1):
        attempt.trial(number).report(i, 2 * i, value, value, 1.0)
        attempt.trial(number).set_checkpoint({"step": 2 * i})


def test_a_grid_is_run_in_order_and_each_trial_is_recorded_before_it_runs(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt)
    for number in (1, 2, 3, 4):
        assert next_of(board) == number
        assert attempt.documents[number]["params"] == {"optim.lr": number / 1000}
        assert attempt.documents[number]["num_steps"] == 8
    assert next_of(board) == "end"
    assert board.why == "all 4 trials are done"


def test_a_new_driver_runs_what_was_begun_first_and_what_has_ended_never_again(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    first = make_board(tmp_path, attempt)
    for _ in range(3):
        next_of(first)
    play(attempt, 1, 0.1, 0.2, 0.3, 0.4)
    play(attempt, 2, 0.1)
    first.ended(1, outcome("succeeded"))
    assert attempt.documents[1]["state"] == "succeeded"
    second = make_board(tmp_path, attempt)
    assert [next_of(second) for _ in range(4)] == [2, 3, 4, "end"]


def test_a_trial_that_is_behind_is_asked_to_end_and_recorded_as_stopped(tmp_path: Path) -> None:
    clock, attempt = Clock(), FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(scheduler="asha", reduction=2), clock=clock)
    for number, value in ((1, 0.6), (2, 0.3)):
        next_of(board)
        play(attempt, number, value)
        clock.now += 30.0
        board.reported(number, 1)
    assert attempt.documents[1]["state"] == "running"
    assert attempt.documents[2]["state"] == "stopped"
    assert attempt.documents[2]["why"].startswith("ended by asha at validation 1: 0.3000 is below 0.6000")
    assert attempt.documents[2]["worker_seconds"] == 30.0
    sign = stop_sign(trial_folder(make_grant(tmp_path), 2))
    assert sign.exists()
    assert not stop_sign(trial_folder(make_grant(tmp_path), 1)).exists()
    board.ended(2, outcome("stopped"))
    assert attempt.documents[2]["state"] == "stopped"


def test_the_last_validation_ends_no_trial_early(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(scheduler="asha", reduction=2, grace=4))
    for number, value in ((1, 0.6), (2, 0.3)):
        next_of(board)
        play(attempt, number, value, value, value, value)
        board.reported(number, 4)
        board.ended(number, outcome("succeeded"))
    assert attempt.documents[2]["state"] == "succeeded"


def test_a_trial_that_succeeded_while_it_was_stopped_stays_stopped(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(scheduler="asha", reduction=2))
    for number, value in ((1, 0.6), (2, 0.3)):
        next_of(board)
        play(attempt, number, value)
        board.reported(number, 1)
        board.ended(number, outcome("succeeded"))
    assert [attempt.documents[number]["state"] for number in (1, 2)] == ["succeeded", "stopped"]


def test_a_restarted_search_prunes_by_what_the_first_driver_has_seen(tmp_path: Path) -> None:
    spec = make_search(scheduler="asha", reduction=2)
    attempt = FakeAttempt()
    first = make_board(tmp_path, attempt, spec)
    for number, value in ((1, 0.6), (2, 0.7)):
        next_of(first)
        play(attempt, number, value)
        first.reported(number, 1)
    second = make_board(tmp_path, attempt, spec)
    assert [next_of(second) for _ in range(3)] == [1, 2, 3]
    play(attempt, 3, 0.5)
    second.reported(3, 1)
    assert attempt.documents[3]["state"] == "stopped"


def test_a_sign_whose_word_never_reached_the_service_is_taken_back(tmp_path: Path) -> None:
    attempt = FakeAttempt({1: trial(1, "running", (0.1,)), 2: trial(2, "stopped", (0.1,))})
    signs = [stop_sign(trial_folder(make_grant(tmp_path), number)) for number in (1, 2)]
    for sign in signs:
        sign.parent.mkdir(parents=True)
        sign.touch()
    assert next_of(make_board(tmp_path, attempt)) == 1
    assert [sign.exists() for sign in signs] == [False, True]


def test_a_sign_of_a_life_before_a_retry_from_the_start_stops_no_new_trial(tmp_path: Path) -> None:
    sign = stop_sign(trial_folder(make_grant(tmp_path), 1))
    sign.parent.mkdir(parents=True)
    sign.touch()
    assert next_of(make_board(tmp_path, FakeAttempt())) == 1
    assert not sign.exists()


def test_failed_trials_do_not_stop_the_rest_until_there_are_too_many(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(max_failures=1))
    for number in (1, 2):
        assert next_of(board) == number
        play(attempt, number)
        assert not board.must_end()
        board.ended(number, outcome("failed", "loss is nan"))
    assert board.must_end()
    assert next_of(board) == "end"
    assert board.failure is not None
    assert "2 trials have failed (1, 2) and 1 may; the last one: loss is nan" in board.failure


def test_a_lost_driver_fails_its_trial(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt)
    next_of(board)
    play(attempt, 1)
    board.ended(1, None)
    assert (attempt.documents[1]["state"], attempt.documents[1]["why"]) == ("failed", "its driver was lost too often")


def test_who_has_to_make_room_begins_nothing_and_leaves_what_yielded_for_the_next_attempt(tmp_path: Path) -> None:
    attempt, heart = FakeAttempt(), FakeHeart()
    board = make_board(tmp_path, attempt, heart=heart)
    next_of(board)
    play(attempt, 1, 0.1)
    heart.must_yield = True
    assert next_of(board) == "end"
    board.ended(1, outcome("yielded"))
    assert attempt.documents[1]["state"] == "running"
    assert next_of(make_board(tmp_path, attempt)) == 1


def test_steps_that_running_trials_may_give_back_are_waited_for(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(max_steps=20))
    assert [next_of(board), next_of(board), next_of(board)] == [1, 2, None]
    play(attempt, 1, 0.1)
    attempt.trial(1).state("stopped")
    board.ended(1, outcome("stopped"))
    assert next_of(board) == 3, "2 + 8 + 8"
    for number in (2, 3):
        play(attempt, number, 0.1, 0.1, 0.1, 0.1)
        board.ended(number, outcome("succeeded"))
    assert next_of(board) == "end"
    assert board.why == "the budget of 20 steps is used up"


@pytest.mark.parametrize("algorithm", ["grid", "random", "optuna"])
def test_the_next_trial_is_the_same_for_a_new_driver(tmp_path: Path, algorithm: str) -> None:
    space = {"optim.lr": {"min": 0.001, "max": 0.1, "step": 0.001}, "train.seed": [1, 2, 3]}
    spec = make_search(space, algorithm=algorithm, trials=6)

    def run(restarts: bool) -> list[dict[str, Any]]:
        attempt = FakeAttempt()
        board = make_board(tmp_path, attempt, spec)
        while (number := next_of(board)) != "end":
            assert isinstance(number, int)
            play(attempt, number, attempt.documents[number]["params"]["optim.lr"])
            board.ended(number, outcome("succeeded"))
            if restarts:
                board = make_board(tmp_path, attempt, spec)
        return [found["params"] for found in attempt.trials()]

    assert run(restarts=True) == run(restarts=False)
    assert len(run(restarts=False)) == 6


def test_the_heart_is_told_how_the_search_goes(tmp_path: Path) -> None:
    attempt, heart = FakeAttempt(), FakeHeart()
    board = make_board(tmp_path, attempt, heart=heart)
    next_of(board)
    assert heart.told[-1]["trials"] == {"done": 0, "running": 1, "of": 4, "by_state": {"waiting": 1}}
    play(attempt, 1, 0.25)
    board.ended(1, outcome("succeeded"))
    assert heart.told[-1]["phase"] == "searching, 0 running, best so far: trial 1 with miou 0.2500"


ASHA = {"scheduler": "asha", "reduction": 2}


def test_what_a_killed_driver_had_no_time_to_stop_is_stopped_by_the_next_one_and_not_run_again(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    first = make_board(tmp_path, attempt, make_search(**ASHA))
    for number, value in ((1, 0.6), (2, 0.3)):
        next_of(first)
        play(attempt, number, value)
    # Killed before Tune has brought it the second one's report.
    second = make_board(tmp_path, attempt, make_search(**ASHA))
    assert next_of(second) == 1
    assert attempt.documents[2]["state"] == "stopped"
    assert attempt.documents[2]["why"].startswith("ended by asha at validation 1: 0.3000 is below 0.6000")
    assert next_of(second) == 3


def test_verdicts_depend_on_the_order_in_which_the_service_has_heard_of_the_validations(tmp_path: Path) -> None:
    for is_killed in (False, True):
        attempt = FakeAttempt()
        board = make_board(tmp_path, attempt, make_search(**ASHA))
        assert [next_of(board), next_of(board)] == [1, 2]
        # The second one is quicker, and so the first to stand on the rung.
        play(attempt, 2, 0.3)
        board.reported(2, 1)
        play(attempt, 1, 0.6)
        if is_killed:
            board = make_board(tmp_path, attempt, make_search(**ASHA))
            next_of(board)
        else:
            board.reported(1, 1)
        assert [attempt.documents[number]["state"] for number in (1, 2)] == ["running", "running"]


def test_a_trial_is_stopped_only_once_the_checkpoint_of_what_it_has_shown_is_there(tmp_path: Path) -> None:
    attempt, clock = FakeAttempt(), Clock()
    board = make_board(tmp_path, attempt, make_search(**ASHA), clock=clock)
    assert [next_of(board), next_of(board)] == [1, 2]
    play(attempt, 1, 0.6)
    attempt.trial(2).state("running")
    attempt.trial(2).report(1, 2, 0.3, 0.3, 1.0)
    board.reported(1, 1)
    assert attempt.documents[2]["state"] == "running", "its best checkpoint may become the search's model"
    attempt.trial(2).set_checkpoint({"step": 2})
    assert not board.must_end()
    assert attempt.documents[2]["state"] == "running", "the service is not asked at every turn"
    clock.now += 1.0
    assert not board.must_end()
    assert attempt.documents[2]["state"] == "stopped"


def test_trials_longer_than_the_base_are_judged_on_higher_rungs_too(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search({"train.steps": [32, 48]}, **ASHA))
    for number, last in ((1, 0.6), (2, 0.3)):
        next_of(board)
        play(attempt, number, *[0.5] * 7, last)
        board.reported(number, 8)
    assert attempt.documents[2]["why"].startswith("ended by asha at validation 8")


def test_what_a_stopped_trial_has_cost_is_counted_over_its_attempts(tmp_path: Path) -> None:
    attempt, clock = FakeAttempt({1: trial(1, "running", (0.6,), checkpoint={"step": 2})}), Clock()
    attempt.documents[2] = trial(2, "running", (), worker_seconds=40.0)
    board = make_board(tmp_path, attempt, make_search(**ASHA), clock=clock)
    assert [next_of(board), next_of(board)] == [1, 2]
    clock.now += 10.0
    play(attempt, 2, 0.3)
    board.reported(2, 1)
    assert (attempt.documents[2]["state"], attempt.documents[2]["worker_seconds"]) == ("stopped", 50.0)


def test_a_trial_that_has_heard_of_the_preemption_first_gets_no_successor(tmp_path: Path) -> None:
    attempt, heart = FakeAttempt(), FakeHeart()
    board = make_board(tmp_path, attempt, heart=heart)
    next_of(board)
    play(attempt, 1, 0.1)
    board.ended(1, outcome("yielded"))
    assert not heart.must_yield
    assert next_of(board) == "end"
    assert sorted(attempt.documents) == [1]


def test_patience_waits_for_what_runs_since_that_may_be_better(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt, make_search(patience=1))
    for number in (1, 2):
        next_of(board)
        play(attempt, number, 0.5)
    assert next_of(board) == 3
    for number in (1, 2):
        board.ended(number, outcome("succeeded"))
    assert next_of(board) is None
    play(attempt, 3, 0.7)
    board.ended(3, outcome("succeeded"))
    assert next_of(board) == 4
    play(attempt, 4, 0.6)
    board.ended(4, outcome("succeeded"))
    assert next_of(board) == "end"


def test_three_failures_of_twenty_leave_seventeen_results(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    spec = make_search({"optim.lr": [number / 1000 for number in range(1, 21)]})
    board = make_board(tmp_path, attempt, spec)
    while (number := next_of(board)) != "end":
        assert isinstance(number, int)
        play(attempt, number, 0.1)
        board.ended(number, outcome("failed", "loss is nan") if number in (4, 9, 20) else outcome("succeeded"))
    states = [found["state"] for found in attempt.trials()]
    assert (states.count("succeeded"), states.count("failed"), board.failure) == (17, 3, None)
    assert board.why == "all 20 trials are done"


def test_why_a_driver_was_lost_is_told(tmp_path: Path) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt)
    next_of(board)
    board.ended(1, None, "ServiceError: MLflow refuses")
    why = "its driver was lost too often, the last time: ServiceError: MLflow refuses"
    assert attempt.documents[1]["why"] == why


def test_the_log_has_a_line_for_each_trial_that_begins_or_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = FakeAttempt()
    board = make_board(tmp_path, attempt)
    next_of(board)
    play(attempt, 1, 0.25)
    board.ended(1, outcome("succeeded", seconds=150.0))
    assert capsys.readouterr().out.splitlines() == [
        "segfleet: trial 1 of 4 begins: optim.lr=0.001",
        "segfleet: trial 1 succeeded; 1 of 4 done, 0 running, best so far: trial 1 with miou 0.2500, about 4 min left",
    ]
