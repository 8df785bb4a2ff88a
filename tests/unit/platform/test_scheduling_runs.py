"""Many passes in virtual time: what a project gets in the long run, who waits how long, and that it comes to an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusters import gpus, job, stops, works
from segfleet.queue.scheduling.values import Candidate, Decision, Holding, Policy, Preempt, Quota, Start
from simulation import Simulation, Work

EIGHT = gpus(8)


def work(seq: int, takes_s: float, arrives: float = 0.0, **changes: object) -> Work:
    return Work(job=job(seq, **changes), arrives=arrives, takes_s=takes_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [{}, {"a": 2.0}, {"a": 3.0, "c": 0.5}])
def test_a_saturated_cluster_is_shared_by_weight(weights: dict[str, float]) -> None:
    """Whoever submits more, or earlier, or in larger pieces: `b` submits all of its jobs before the others."""
    shapes = {"a": (1, 100.0, 150), "b": (2, 60.0, 150), "c": (1, 30.0, 240)}
    found = []
    for project, (workers, takes_s, jobs) in shapes.items():
        for _ in range(jobs):
            found.append(work(len(found) + (project != "b") * 1000, takes_s, workers=workers, project=project))
    run = Simulation(EIGHT, found, Policy(weights=weights, entry_penalty_s=30.0), tick_s=1e9).run(until=2400.0)
    assert len(run.starts()) < len(found) - 20  # still saturated
    shares = {project: use / sum(run.use.values()) for project, use in run.use.items()}
    entitled = {project: weights.get(project, 1.0) for project in shapes}
    for project, weight in entitled.items():
        assert shares[project] == pytest.approx(weight / sum(entitled.values()), abs=0.02)


def test_a_burst_of_submissions_does_not_win_against_a_project_with_one_job() -> None:
    burst = [work(seq, 600.0, project="a") for seq in range(1, 101)]
    one = [work(1000, 600.0, arrives=10.0, project="b")]
    begun = Simulation(EIGHT, [*burst, *one], Policy()).run().starts()
    assert begun["job-1000"] == 600.0
    assert sum(start == 600.0 for start in begun.values()) == 8


def test_a_burst_does_not_win_by_starts_whose_use_does_not_show_yet() -> None:
    """A GPU is freed every ten seconds; `b` has used a little, `a` nothing."""
    running = [work(seq, 10.0 * seq, project="c") for seq in range(1, 9)]
    warm = [work(50, 20.0, arrives=-1.0, project="b")]
    bursts = [
        work(100 * which + n, 5000.0, 25.0, project=project) for which, project in enumerate("ab", 1) for n in range(50)
    ]
    run = Simulation(EIGHT, [*running, *warm, *bursts], Policy()).run(until=90.0)
    late = sorted((span.holding.since, span.holding.project) for span in run.spans if span.outcome == "running")
    assert "".join(project for _, project in late) == "abababab"


@pytest.mark.parametrize("bound", [3, 7])
def test_a_job_is_overtaken_by_so_many_and_no_more(bound: int) -> None:
    """The project of the first has used a lot, and another one submits for ever."""
    heavy = [work(1, 3000.0, workers=8, project="a", priority=60), work(2, 10.0, arrives=1.0, workers=8, project="a")]
    stream = [work(seq, 100.0, arrives=2.0, workers=4, project="b") for seq in range(10, 40)]
    begun = Simulation(EIGHT, [*heavy, *stream], Policy(max_overtaken=bound)).run().starts()
    before = sum(begun[one.job.job_id] < begun["job-2"] for one in stream)
    # It counts after the pass in which the last of them starts; a pass starts two.
    assert bound <= before <= bound + 1


def test_a_project_with_many_old_jobs_does_not_turn_their_age_into_a_larger_share() -> None:
    """Those behind its first are not overtaken by others, they wait for their own."""
    old = [work(seq, 100.0, project="a") for seq in range(1, 200)]
    new = [work(seq, 100.0, arrives=1.0, project="b") for seq in range(1000, 1200)]
    run = Simulation(EIGHT, [*old, *new], Policy(max_overtaken=10)).run(until=2000.0)
    assert run.use["a"] == pytest.approx(run.use["b"], abs=100.0)  # one round of all GPUs


def test_a_guarantee_comes_back_within_the_grace_and_a_pass() -> None:
    policy = Policy(preempts_to_reclaim=True, projects={"a": Quota(gpus=6)})
    borrowers = [work(seq, 1e5, project="b") for seq in range(1, 9)]
    owners = [work(seq, 500.0, arrives=5000.0, workers=2, project="a") for seq in (11, 12, 13, 14)]
    run = Simulation(EIGHT, [*borrowers, *owners], policy).run(until=20_000.0)
    begun = run.starts()
    assert [begun[f"job-{seq}"] for seq in (11, 12, 13)] == [5120.0] * 3
    assert begun["job-14"] == 5620.0  # beyond the guarantee, but it has used less
    assert sum(span.outcome == "preempted" for span in run.spans) == 6


def test_a_guarantee_waits_for_the_minimum_run_time_of_borrowers() -> None:
    policy = Policy(preempts_to_reclaim=True, projects={"a": Quota(gpus=8)}, min_run_s=600.0)
    found = [work(1, 1e5, workers=8, project="b"), work(2, 10.0, arrives=100.0, project="a")]
    assert Simulation(EIGHT, found, policy, tick_s=1.0).run(until=9000.0).starts()["job-2"] == 720.0


def test_a_borrower_that_made_room_does_not_take_it_back_for_having_been_overtaken() -> None:
    policy = Policy(
        preempts_to_reclaim=True, projects={"a": Quota(gpus=1)}, min_run_s=0.0, grace_s=1.0, max_overtaken=1
    )
    owners = [work(seq, 10.0, arrives=10.0 * seq + 5.0, project="a") for seq in range(1, 5)]
    run = Simulation(gpus(1), [work(0, 100.0, project="b"), *owners], policy, tick_s=1.0).run(until=500.0)
    assert [span.outcome for span in run.spans if span.holding.project == "b"] == ["preempted", "done"]


def test_an_elastic_job_does_not_trade_places_for_ever() -> None:
    """Both projects could take the whole cluster, and each is guaranteed half of it."""
    policy = Policy(preempts_to_reclaim=True, projects={"a": Quota(gpus=4), "b": Quota(gpus=4)})
    found = [
        work(1, 20_000.0, workers=2, most=8, project="a"),
        work(2, 20_000.0, arrives=1000.0, workers=2, most=8, project="b"),
    ]
    run = Simulation(EIGHT, found, policy).run()
    assert [span.holding.job_id for span in run.spans if span.outcome == "preempted"] == ["job-1"]


POLICIES = st.builds(
    Policy,
    projects=st.dictionaries(st.sampled_from("abc"), st.builds(Quota, gpus=st.integers(0, 8))),
    weights=st.dictionaries(st.sampled_from("abc"), st.floats(0.2, 5.0)),
    preempts_for_priority=st.booleans(),
    preempts_to_reclaim=st.booleans(),
    min_run_s=st.sampled_from((0.0, 60.0)),
    grace_s=st.sampled_from((0.0, 20.0)),
    max_overtaken=st.integers(1, 20),
)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(works(), POLICIES)
def test_any_run_ends_within_the_cluster_and_without_ping_pong(found: list[Work], policy: Policy) -> None:
    told: list[Preempt] = []
    priorities = {one.job.job_id: one.job.priority for one in found}

    def watch(_: float, jobs: Sequence[Candidate], running: Sequence[Holding], decisions: Sequence[Decision]) -> None:
        gangs = {candidate.job_id: candidate.gang for candidate in jobs}
        begun = sum(d.workers * gangs[d.job_id].gpus for d in decisions if isinstance(d, Start))
        assert sum(h.workers * h.gang.gpus for h in running) + begun <= 8
        told.extend(decision for decision in decisions if isinstance(decision, Preempt))
        assert len(stops(decisions)) == len(set(stops(decisions)))

    run = Simulation(gpus(4, nodes=2), found, policy, watch=watch).run()
    # Nobody is forgotten, and each job has had all that it takes.
    for one in found:
        spans = [span for span in run.spans if span.holding.job_id == one.job.job_id]
        ran_s = sum((span.end - span.holding.since) * span.holding.workers / one.job.gang.workers for span in spans)
        assert spans[-1].outcome in ("done", "limit")
        assert ran_s == pytest.approx(one.takes_s)
        assert all(before.end <= after.holding.since for before, after in pairwise(spans))
    # Nobody who made room for another is given room by it, nor does anybody make room for the same twice.
    pairs = [(stop.job_id, stop.beneficiary) for stop in told]
    assert not {(beneficiary, victim) for victim, beneficiary in pairs} & set(pairs)
    assert len(pairs) == len(set(pairs))
    assert all(priorities[stop.job_id] <= priorities[stop.beneficiary] for stop in told)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(works())
def test_bands_are_strict(found: list[Work]) -> None:
    """With preemption and no minimum run time, a job of a higher band is as well off as if there were no others."""
    policy = Policy(preempts_for_priority=True, min_run_s=0.0, grace_s=0.0)
    nodes = gpus(8)
    limitless = [replace(one, job=replace(one.job, project="a", time_left_s=None)) for one in found]
    highest = [one for one in limitless if one.job.priority == 60]
    with_all = Simulation(nodes, limitless, policy).run().starts()
    alone = Simulation(nodes, highest, policy).run().starts()
    assert {job_id: with_all[job_id] for job_id in alone} == pytest.approx(alone)
