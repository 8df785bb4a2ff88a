from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from clusters import gpus, held, job
from segfleet.queue.scheduling.line import Tally, order
from segfleet.queue.scheduling.values import Candidate, Gang, Holding, Policy, Quota

EIGHT = gpus(8)
GUARANTEED = Policy(projects={"a": Quota(gpus=2)})


def line(
    jobs: Sequence[Candidate],
    holdings: Sequence[Holding] = (),
    use: Mapping[str, float] | None = None,
    policy: Policy | None = None,
    hindered: Sequence[str] = (),
) -> list[int]:
    return [job.seq for job in order(jobs, holdings, use or {}, EIGHT, 0.0, policy or Policy(), hindered)]


def test_priority_then_age() -> None:
    assert line([job(3, priority=60), job(2), job(1), job(4, priority=60)]) == [3, 4, 1, 2]


def test_what_cannot_start_stands_at_the_end_of_its_band() -> None:
    assert line([job(1), job(2), job(3, priority=40)], hindered=["job-1"]) == [2, 1, 3]


def test_projects_take_turns_however_many_jobs_one_submits_first() -> None:
    jobs = [*(job(seq, project="a") for seq in range(1, 7)), job(7, project="b"), job(8, project="b")]
    assert line(jobs) == [1, 7, 2, 8, 3, 4, 5, 6]


def test_the_project_that_has_used_least_comes_first_until_its_places_make_up_for_it() -> None:
    jobs = [*(job(seq, project="a") for seq in (1, 2)), *(job(seq, project="b") for seq in (3, 4, 5))]
    # Each place of one GPU of eight counts as 600 / 8 = 75 s of the whole cluster.
    assert line(jobs, use={"a": 100.0}) == [3, 4, 1, 5, 2]


def test_weights_scale_turns() -> None:
    jobs = [job(seq, project="a" if seq < 10 else "b") for seq in (1, 2, 3, 4, 10, 11, 12)]
    assert line(jobs, policy=Policy(weights={"a": 2.0})) == [1, 10, 2, 3, 11, 4, 12]


def test_large_jobs_count_for_more() -> None:
    jobs = [job(1, workers=4, project="a"), job(2, project="a"), *(job(seq, project="b") for seq in (3, 4, 5, 6, 7, 8))]
    assert line(jobs) == [1, 3, 4, 5, 6, 2, 7, 8]


@pytest.mark.parametrize(
    ("ran_s", "expected"),
    [(0.0, [2, 1]), (590.0, [2, 1]), (600.0, [1, 2]), (10_000.0, [1, 2])],
)
def test_a_start_counts_at_once_and_not_only_as_it_runs(ran_s: float, expected: list[int]) -> None:
    """Else a project whose jobs have just started would get every place that is freed before its use shows."""
    running = [held(90, project="a", since=-ran_s)]
    assert line([job(1, project="a"), job(2, project="b")], running, use={"a": 0.0, "b": 1.0}) == expected


def test_those_within_their_guarantee_come_before_borrowers() -> None:
    jobs = [job(1, project="b"), *(job(seq, project="a") for seq in (2, 3, 4, 5))]
    assert line(jobs, use={"a": 1e6}, policy=GUARANTEED) == [2, 3, 1, 4, 5]
    assert line(jobs, [held(90, project="a")], use={"a": 1e6}, policy=GUARANTEED) == [2, 1, 3, 4, 5]


def test_a_gang_larger_than_the_guarantee_does_not_keep_smaller_jobs_from_it() -> None:
    jobs = [job(1, workers=4, project="a"), job(2, project="b"), job(3, project="a"), job(4, workers=2, project="a")]
    assert line(jobs, policy=GUARANTEED) == [3, 2, 1, 4]


def test_a_job_that_was_overtaken_too_often_is_first_among_its_equals() -> None:
    jobs = [job(1, project="a", overtaken=50), job(2, project="b"), job(3, project="a"), job(4, priority=60)]
    assert line(jobs, use={"a": 1e6}) == [4, 1, 2, 3]
    jobs[0] = job(1, project="a", overtaken=49)
    assert line(jobs, use={"a": 1e6}) == [4, 2, 1, 3]


def test_a_borrower_does_not_overtake_a_guarantee_by_having_waited() -> None:
    """Else a job that was stopped to give room back would be first to take it again."""
    assert line([job(1, project="b", overtaken=99), job(2, project="a")], policy=GUARANTEED) == [2, 1]


@pytest.mark.parametrize(
    ("quota", "gang", "more", "exceeds"),
    [
        (None, Gang(1, 1, 1), 0, True),
        (Quota(max_gpus=9), Gang(1, 1, 1), 0, True),
        (Quota(gpus=4), Gang(1, 1, 1), 0, False),
        (Quota(gpus=4), Gang(1, 1, 1), 2, False),
        (Quota(gpus=4), Gang(1, 1, 1), 3, True),
        (Quota(gpus=4), Gang(3, 1, 0), 0, True),  # no guarantee of CPUs
        (Quota(workers=2), Gang(1, 1, 1), 0, False),
        (Quota(workers=2), Gang(1, 1, 1), 1, True),
        (Quota(gpus=1, workers=9), Gang(1, 1, 0), 1, False),  # what borrows GPUs is another of its jobs
        (Quota(gpus=1, workers=9), Gang(1, 1, 1), 0, True),
    ],
)
def test_what_no_guarantee_covers_is_borrowed(quota: Quota | None, gang: Gang, more: int, exceeds: bool) -> None:
    tally = Tally.of([held(1, workers=2, project="a"), held(2, project="b")])
    assert tally.exceeds_guarantee("a", quota, gang, more) == exceeds


def test_a_tally_by_project_and_by_user() -> None:
    running = [held(1, workers=2, gpus=2, project="a", user="ann"), held(2, project="b", user="ann")]
    by_project, by_user = Tally.of(running), Tally.of(running, of_users=True)
    assert (by_project.of_kind("a", "worker"), by_project.of_kind("a", "GPU")) == (2, 4)
    assert (by_user.of_kind("ann", "running job"), by_user.of_kind("ann", "GPU")) == (2, 5)
    left = by_project.minus([running[0]])
    assert (left.of_kind("a", "GPU"), left.of_kind("a", "running job"), left.of_kind("b", "GPU")) == (0, 0, 1)
    assert by_project.of_kind("a", "GPU") == 4
