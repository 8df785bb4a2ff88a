from __future__ import annotations

import pytest

from clusters import gpus, held, job
from segfleet.queue.scheduling.admission import Ledger, amount, hindrance, never_fits
from segfleet.queue.scheduling.values import Candidate, Gang, Node, Policy, Quota


@pytest.mark.parametrize(
    ("candidate", "now", "why"),
    [
        (job(1), 0.0, ""),
        (job(1, not_before=100.0), 88.5, "retry in 12 s"),
        (job(1, not_before=100.0), 100.0, ""),
        (job(1, not_before=300.0), 0.0, "retry in 300 s"),
        (job(1, not_before=3 * 3600.0), 0.0, ""),  # a clock that was set back since
        (job(1, hindrance="after job-0 (running)"), 0.0, "after job-0 (running)"),
        (job(1, hindrance="after job-0 (running)", not_before=10.0), 0.0, "retry in 10 s"),
    ],
)
def test_back_off_and_dependencies_hinder(candidate: Candidate, now: float, why: str) -> None:
    assert hindrance(candidate, "", now) == why


def test_a_job_that_never_fits_says_so() -> None:
    assert hindrance(job(1), "needs 3 CPUs", 0.0) == "needs 3 CPUs"


@pytest.mark.parametrize(
    ("gang", "why"),
    [
        (Gang(8, 1, 1), ""),
        (Gang(4, 2, 2), ""),
        (Gang(1, 3, 0), "needs 1 worker of 3 CPUs each, the nodes have room for 0"),
        (Gang(3, 2, 0), ""),
        (Gang(3, 2, 2, 9), ""),
        (Gang(5, 2, 1), "needs 10 CPUs and 5 GPUs, the cluster has 8 CPUs and 8 GPUs in all"),
        (Gang(1, 9, 0), "needs 9 CPUs, the cluster has 8 CPUs and 8 GPUs in all"),
    ],
)
def test_never_fits_gives_the_numbers(gang: Gang, why: str) -> None:
    assert never_fits(gang, gpus(2, nodes=4)) == why


def test_an_empty_cluster_fits_nobody() -> None:
    assert never_fits(Gang(1, 1, 0), ()) == "needs 1 CPU, the cluster has 0 CPUs in all"
    assert never_fits(Gang(1, 3, 0), [Node(2, 0)]) == "needs 3 CPUs, the cluster has 2 CPUs in all"


def test_amounts_in_words() -> None:
    assert [amount(1, 0), amount(2, 1), amount(0, 3)] == ["1 CPU", "2 CPUs and 1 GPU", "0 CPUs and 3 GPUs"]


RUNNING = [held(90, workers=2, gpus=2, project="a", user="ann"), held(91, project="b", user="ann")]


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Policy(), ""),
        (Policy(projects={"a": Quota(max_running=2, max_workers=5, max_gpus=7)}), ""),
        (Policy(projects={"b": Quota(max_running=0)}), ""),
        (Policy(projects={"a": Quota(max_running=1)}), "quota: project a has 1 of 1 running job, this job needs 1"),
        (Policy(projects={"a": Quota(max_workers=4)}), "quota: project a has 2 of 4 workers, this job needs 3"),
        (Policy(projects={"a": Quota(max_gpus=6)}), "quota: project a has 4 of 6 GPUs, this job needs 3"),
        (Policy(users={"ann": Quota(max_gpus=7)}), "quota: user ann has 5 of 7 GPUs, this job needs 3"),
        (Policy(users={"bob": Quota(max_gpus=7)}), ""),
    ],
)
def test_quotas_of_projects_and_users(policy: Policy, why: str) -> None:
    assert Ledger.of(RUNNING, policy).shortage(job(1, workers=3, project="a", user="ann")) == why


def test_a_start_counts_and_its_growth_is_no_second_job() -> None:
    ledger = Ledger.of([], Policy(projects={"a": Quota(max_running=2, max_workers=5)}))
    ledger.add(job(1, workers=2, most=4, project="a"), 2)
    ledger.add(job(1, workers=2, most=4, project="a"), 2, jobs=0)
    assert ledger.shortage(job(2, project="a")) == ""
    assert ledger.shortage(job(3, workers=2, project="a")) == ("quota: project a has 4 of 5 workers, this job needs 2")


def test_what_is_left_of_a_quota_is_kept_for_the_first_that_waits_for_it() -> None:
    policy = Policy(projects={"a": Quota(max_gpus=4, max_workers=9)}, users={"ann": Quota(max_gpus=9)})
    ledger = Ledger.of([held(90, workers=2, project="a", user="bob")], policy)
    large = job(1, workers=4, project="a", user="ann")
    assert ledger.shortage(large) == "quota: project a has 2 of 4 GPUs, this job needs 4"
    ledger.keep(large, where_short=True)
    small = job(2, project="a", user="ann")
    assert ledger.shortage(small) == "quota: what project a has left is kept for job-1"
    assert ledger.shortage(job(3, gpus=0, project="a", user="ann")) == ""  # it takes nothing that the other lacks
    assert ledger.shortage(job(4, workers=6, project="b", user="ann")) == ""  # nor what only another quota holds back


def test_nothing_is_kept_for_a_job_larger_than_its_quota() -> None:
    ledger = Ledger.of([], Policy(projects={"a": Quota(max_gpus=4)}))
    ledger.keep(job(1, workers=5, project="a"), where_short=True)
    assert ledger.shortage(job(2, project="a")) == ""


def test_quotas_are_kept_for_the_head_of_the_line() -> None:
    ledger = Ledger.of([], Policy(projects={"a": Quota(max_gpus=4)}))
    ledger.keep(job(1, workers=3, project="a"))
    assert ledger.shortage(job(2, project="a")) == ""
    assert ledger.shortage(job(3, workers=2, project="a")) == "quota: what project a has left is kept for job-1"


@pytest.mark.parametrize(
    ("quota", "allowed"),
    [(Quota(), 8), (Quota(max_workers=5), 3), (Quota(max_gpus=9), 2), (Quota(max_gpus=9, max_workers=3), 1)],
)
def test_elastic_jobs_get_no_more_workers_than_the_quota_leaves(quota: Quota, allowed: int) -> None:
    ledger = Ledger.of([RUNNING[0]], Policy(projects={"a": quota}))
    assert ledger.allowed_workers(job(1, gpus=2, most=8, project="a")) == allowed
