"""The director of a search: what it starts, what it records, and that a new one goes on where the old one was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from searched import FakeAttempt, FakeHeart, make_grant, make_search, trial
from segfleet.spec.kinds import SearchSpec
from segfleet_jobs.search_board import Board
from segfleet_jobs.trial_link import stop_sign, trial_folder


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
