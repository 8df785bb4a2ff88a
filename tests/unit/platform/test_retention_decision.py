"""Which pieces may go: nothing unless asked for, and never what somebody needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segfleet.retention.decision import Kind, Leaving, Piece, Rules, deletions, youngest_age_s

DAY = 86_400.0
NOW = 1_000 * DAY
BEST = Piece(Kind.CHECKPOINT, "j/a/step-00000001", 10, is_best=True)
LATEST = Piece(Kind.CHECKPOINT, "j/a/step-00000003", 10, is_latest=True)
OTHER = Piece(Kind.CHECKPOINT, "j/a/step-00000002", 10)
REMNANT = Piece(Kind.CHECKPOINT, "j/a/.removing-step-00000000", 10, is_remnant=True)
LOG, RUN = Piece(Kind.LOG, "j-a1.log", 10), Piece(Kind.RUN, "r" * 32, 0)
ALL = (BEST, LATEST, OTHER, REMNANT, LOG, RUN)
JOB = Leaving("job-aaaaaaaa", NOW - 40 * DAY, can_retry=False, needed_by="", versions=(), pieces=ALL)
EVERYTHING: dict[str, Any] = {
    "checkpoints_after": "10d",
    "logs_after": "10d",
    "runs_after": "10d",
    "keep_best": False,
    "keep_latest": False,
}


def going(job: Leaving, **rules: Any) -> set[str]:
    return {piece.name for piece in deletions(job, Rules(**rules), NOW)}


def names(*pieces: Piece) -> set[str]:
    return {piece.name for piece in pieces}


def test_nothing_goes_before_rules_are_set() -> None:
    assert going(JOB) == set()
    assert youngest_age_s(Rules()) is None
    assert youngest_age_s(Rules(logs_after="2d", runs_after="1d")) == DAY


@pytest.mark.parametrize(
    ("rules", "gone"),
    [
        ({"checkpoints_after": "40d"}, names(OTHER, REMNANT)),
        ({"checkpoints_after": "41d"}, set()),
        ({"checkpoints_after": "1d", "keep_best": False}, names(BEST, OTHER, REMNANT)),
        ({"checkpoints_after": "1d", "keep_latest": False}, names(LATEST, OTHER, REMNANT)),
        ({"logs_after": "1d"}, names(LOG)),
        ({"runs_after": "1d"}, names(RUN)),
        (EVERYTHING, names(*ALL)),
    ],
)
def test_rules_say_what_goes(rules: dict[str, Any], gone: set[str]) -> None:
    assert going(JOB, **rules) == gone


@pytest.mark.parametrize(
    "job",
    [replace(JOB, ended_at=None), replace(JOB, needed_by="job-bbbbbbbb"), replace(JOB, ended_at=NOW - DAY)],
    ids=["not ended", "needed", "young"],
)
def test_what_lives_or_is_needed_keeps_all(job: Leaving) -> None:
    assert going(job, **EVERYTHING) == set()


def test_a_version_keeps_best_and_latest_and_its_runs_for_ever() -> None:
    assert going(replace(JOB, versions=("seg/1",)), **EVERYTHING) == names(OTHER, REMNANT, LOG)


def test_what_can_be_retried_keeps_where_it_would_go_on_for_a_while() -> None:
    job = replace(JOB, can_retry=True)
    assert going(job, **EVERYTHING, retry_for="50d") == names(OTHER, REMNANT, LOG)
    assert going(job, **EVERYTHING, retry_for="30d") == names(*ALL)


@given(
    st.builds(
        Piece,
        st.sampled_from(Kind),
        st.just("x"),
        st.integers(0, 9),
        is_best=st.booleans(),
        is_latest=st.booleans(),
        is_remnant=st.just(False),
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_rule_that_keeps_more_never_deletes_more(piece: Piece, can_retry: bool, best: bool, latest: bool) -> None:
    job = replace(JOB, can_retry=can_retry, pieces=(piece,))
    loose = {**EVERYTHING, "keep_best": best, "keep_latest": latest}
    assert going(job, **{**loose, "keep_best": True}) <= going(job, **loose)
    assert going(job, **{**loose, "retry_for": "1000d"}) <= going(job, **loose)
    assert going(replace(job, versions=("seg/1",)), **loose) <= going(job, **loose)
