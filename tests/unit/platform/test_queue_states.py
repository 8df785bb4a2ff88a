from __future__ import annotations

import pytest

from segfleet.errors import IllegalTransitionError
from segfleet.queue.states import TERMINAL, TRANSITIONS, JobState, check_transition, is_terminal

# Written out by hand, so that a change of the table is a change of two places.
LEGAL = {
    ("queued", "starting"),
    ("queued", "paused"),
    ("queued", "failed"),
    ("queued", "cancelled"),
    ("starting", "running"),
    ("starting", "queued"),
    ("starting", "paused"),
    ("starting", "failed"),
    ("starting", "cancelled"),
    ("running", "preempting"),
    ("preempting", "succeeded"),
    ("preempting", "queued"),
    ("preempting", "paused"),
    ("preempting", "failed"),
    ("preempting", "cancelled"),
    ("paused", "queued"),
    ("paused", "cancelled"),
    ("running", "succeeded"),
    ("running", "queued"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}


@pytest.mark.parametrize("source", JobState)
@pytest.mark.parametrize("target", JobState)
def test_only_the_listed_steps_are_legal(source: JobState, target: JobState) -> None:
    if (source, target) in LEGAL:
        check_transition("job-aaaaaaaa", source, target)
    else:
        with pytest.raises(IllegalTransitionError, match=f"it is {source}"):
            check_transition("job-aaaaaaaa", source, target)


def test_every_state_has_a_row_and_success_is_for_ever() -> None:
    assert TRANSITIONS.keys() == set(JobState)
    assert TRANSITIONS[JobState.SUCCEEDED] == frozenset()
    assert {state for state in JobState if is_terminal(state)} == TERMINAL
