from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import make_queue, prepare_document, train_document
from fakes import FakeClock
from segfleet.errors import (
    AttemptFencedError,
    IdempotencyConflictError,
    IllegalTransitionError,
    QueueError,
    SpecError,
    UnknownJobError,
)
from segfleet.queue import fencing, lifecycle
from segfleet.queue.board import Board
from segfleet.queue.model import ATTEMPT_ID, JOB_ID, Grant, Job, Wanted
from segfleet.queue.scheduling.values import Gang, Node, Wait
from segfleet.queue.service import Queue
from segfleet.queue.states import FailureClass, JobState

INSTANCE = "0123456789abcdef"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(tmp_path: Path, clock: FakeClock, queue_url: str) -> Iterator[Queue]:
    made = make_queue(tmp_path, clock, queue_url)
    yield made
    made.store.close()


def start(queue: Queue, job: Job, code: str = "code") -> str:
    """Open the job's next attempt as the dispatcher does."""
    with queue.store.write() as tx:
        return lifecycle.begin_attempt(tx, tx.job(job.id), 1, fencing.digest(code), queue.clock()).id


def run(queue: Queue, job: Job) -> Grant:
    return queue.claim(start(queue, job), "code", INSTANCE)


def lose(queue: Queue, grant: Grant) -> Job:
    with queue.store.write() as tx:
        attempt = tx.attempt(grant.attempt_id)
        assert attempt is not None
        return lifecycle.end_failed(
            tx, tx.job(grant.job_id), attempt, FailureClass.INFRA, "no heartbeat", now=queue.clock(), lost=True
        )


def test_a_submitted_job_is_stored_as_it_was_resolved(queue: Queue, clock: FakeClock) -> None:
    document = train_document(workers=2, priority=70, project="vision")
    job, replayed = queue.submit(document, owner="ann")
    assert not replayed
    assert JOB_ID.fullmatch(job.id)
    assert queue.get(job.id) == job
    assert (job.spec, job.state, job.priority, job.project) == (document, JobState.QUEUED, 70, "vision")
    assert (job.gang, job.created_at, job.owner) == (Gang(2, 1, 0), clock.now, "ann")


def test_an_idempotency_key_gives_the_same_job_again(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann", key="k")
    assert queue.submit(train_document(), owner="ann", key="k") == (job, True)
    other, replayed = queue.submit(train_document(), owner="bob", key="k")
    assert not replayed
    assert other.id != job.id
    with pytest.raises(IdempotencyConflictError, match=job.id):
        queue.submit(prepare_document(), owner="ann", key="k")
    assert len(queue.list()) == 2


def test_many_posts_of_one_key_at_once_make_one_job(queue: Queue) -> None:
    answers: list[tuple[str, bool]] = []

    def post() -> None:
        job, replayed = queue.submit(train_document(), owner="ann", key="k")
        answers.append((job.id, replayed))

    threads = [threading.Thread(target=post) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 11
    assert len(queue.list()) == 1


def test_a_job_larger_than_the_cluster_is_refused_with_both_numbers(queue: Queue) -> None:
    queue.submit(train_document(workers=8), owner="ann")
    queue.board = Board(nodes=(Node(2, 0),))
    with pytest.raises(SpecError, match="needs 8 CPUs, the cluster has 2 CPUs in all"):
        queue.submit(train_document(workers=8), owner="ann")
    assert len(queue.list()) == 1


def test_a_queued_job_shows_place_and_reason(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    queue.board = Board(waits={job.id: Wait(job.id, 3, "behind job-x")})
    assert (queue.get(job.id).place, queue.get(job.id).reason) == (3, "behind job-x")
    queue.cancel(job.id, "ann")
    assert (queue.get(job.id).place, queue.get(job.id).reason) == (None, "cancelled")


def test_list_is_newest_first_and_filtered(queue: Queue) -> None:
    jobs = [queue.submit(train_document(project=p), owner="ann")[0] for p in ("a", "b", "a")]
    queue.cancel(jobs[0].id, "ann")
    assert [job.id for job in queue.list()] == [job.id for job in reversed(jobs)]
    assert [job.id for job in queue.list(limit=1)] == [jobs[2].id]
    for wanted, found in (
        (Wanted(project="a"), [2, 0]),
        (Wanted((JobState.CANCELLED,)), [0]),
        (Wanted((JobState.CANCELLED, JobState.QUEUED)), [2, 1, 0]),
        (Wanted(owner="ann", kind="train"), [2, 1, 0]),
        (Wanted(owner="bob"), []),
        (Wanted(kind="prepare"), []),
        (Wanted(name="hap"), [2, 1, 0]),
        (Wanted(name="s%a"), []),
        (Wanted(before=jobs[2].seq), [1, 0]),
    ):
        assert [job.id for job in queue.list(wanted)] == [jobs[i].id for i in found], wanted
    assert queue.counts() == {JobState.QUEUED: 2, JobState.CANCELLED: 1}


@pytest.mark.parametrize("verb", ["get", "events", "attempts"])
def test_an_unknown_job_is_named(queue: Queue, verb: str) -> None:
    with pytest.raises(UnknownJobError, match="job-zzzzzzzz"):
        getattr(queue, verb)("job-zzzzzzzz")


def test_the_whole_road_is_in_the_history(queue: Queue, clock: FakeClock) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    assert ATTEMPT_ID.fullmatch(grant.attempt_id)
    clock.advance(5)
    assert queue.heartbeat(grant.attempt_id, grant.token, {"step": 1}) == "continue"
    assert queue.get(job.id).progress == {"step": 1}
    queue.set_checkpoint(grant.attempt_id, grant.token, {"path": "/c/1", "step": 1, "sha256": "0", "bytes": 9})
    done = queue.complete(grant.attempt_id, grant.token, {"miou": 0.5})
    assert (done.state, done.result, done.finished_at) == (JobState.SUCCEEDED, {"miou": 0.5}, clock.now)
    kinds = ["submitted", "starting", "running", "checkpoint", "succeeded"]
    assert [event.kind for event in queue.events(job.id)] == kinds
    [attempt] = queue.attempts(job.id)
    assert (attempt.heartbeat_at, attempt.beats, attempt.state) == (clock.now, 2, "succeeded")


def test_a_grant_holds_what_the_attempt_needs(queue: Queue, tmp_path: Path) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    assert grant.spec == job.spec
    assert grant.storage == str(tmp_path / "storage" / job.id)
    assert (grant.fence, grant.checkpoint) == (1, None)


def test_a_code_is_traded_once_and_again_only_by_the_same_instance(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    attempt_id = start(queue, job)
    with pytest.raises(AttemptFencedError, match="wrong code"):
        queue.claim(attempt_id, "guess", INSTANCE)
    grant = queue.claim(attempt_id, "code", INSTANCE)
    assert queue.claim(attempt_id, "code", INSTANCE) == grant
    with pytest.raises(AttemptFencedError, match="already traded"):
        queue.claim(attempt_id, "code", "another-instance")
    with pytest.raises(QueueError, match="16 random characters"):
        queue.claim(attempt_id, "code", "short")


def test_secrets_are_stored_as_digests_only(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = queue.claim(start(queue, job, "the-one-time-code"), "the-one-time-code", INSTANCE)
    with queue.store.read() as tx:
        stored = tx.credentials(grant.attempt_id)
    assert {len(stored.code), len(stored.token or ""), len(stored.instance or "")} == {64}
    assert not {"the-one-time-code", grant.token, INSTANCE} & {stored.code, stored.token, stored.instance}


@pytest.mark.parametrize(
    "write",
    [
        lambda q, a, t: q.heartbeat(a, t, {"step": 9}),
        lambda q, a, t: q.set_checkpoint(a, t, {"path": "/c", "step": 9, "sha256": "0", "bytes": 1}),
        lambda q, a, t: q.complete(a, t, {"miou": 1.0}),
        lambda q, a, t: q.fail(a, t, {"class": "user", "message": "late"}),
        lambda q, a, t: q.authorize(a, t),
    ],
    ids=["heartbeat", "checkpoint", "complete", "fail", "authorize"],
)
def test_only_the_current_attempt_with_its_own_token_may_write(queue: Queue, clock: FakeClock, write) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    old = run(queue, job)
    with pytest.raises(AttemptFencedError, match="wrong token"):
        write(queue, old.attempt_id, "x" * 64)
    with pytest.raises(AttemptFencedError, match="no such attempt"):
        write(queue, "job-zzzzzzzz-a1", old.token)
    lose(queue, old)
    with pytest.raises(AttemptFencedError, match="ended as lost"):
        write(queue, old.attempt_id, old.token)
    clock.advance(10)
    new = run(queue, job)
    before = queue.get(job.id)
    with pytest.raises(AttemptFencedError, match="attempt 2 has taken over"):
        write(queue, old.attempt_id, old.token)
    with pytest.raises(AttemptFencedError, match="wrong token"):
        write(queue, new.attempt_id, old.token)
    assert queue.get(job.id) == before
    assert new.fence > old.fence


def test_a_token_is_known_even_after_its_attempt_has_ended(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    lose(queue, grant)
    assert queue.is_token(grant.attempt_id, grant.token)
    assert not queue.is_token(grant.attempt_id, "x" * 64)
    assert not queue.is_token("job-zzzzzzzz-a1", grant.token)


def test_an_ended_attempt_cannot_claim_again(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    queue.fail(grant.attempt_id, grant.token, {"class": "infra", "message": "disk"})
    with pytest.raises(AttemptFencedError, match="ended as failed"):
        queue.claim(grant.attempt_id, "code", INSTANCE)


def test_completion_and_failure_may_be_repeated_after_a_lost_answer(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    done = queue.complete(grant.attempt_id, grant.token, {"miou": 0.5})
    assert queue.complete(grant.attempt_id, grant.token, {"miou": 0.5}) == done
    with pytest.raises(AttemptFencedError):
        queue.fail(grant.attempt_id, grant.token, {"class": "user", "message": "x"})
    other, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, other)
    failed = queue.fail(grant.attempt_id, grant.token, {"class": "user", "message": "x"})
    assert queue.fail(grant.attempt_id, grant.token, {"class": "user", "message": "x"}) == failed
    assert [event.kind for event in queue.events(other.id)].count("failed") == 1


def test_checkpoint_steps_rise_within_an_attempt_and_may_fall_back_in_the_next(queue: Queue, clock: FakeClock) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    at = {"path": "/c", "step": 20, "sha256": "0", "bytes": 1}
    pointed = queue.set_checkpoint(grant.attempt_id, grant.token, at)
    assert pointed.checkpoint == {**at, "attempt": grant.attempt_id}
    assert queue.set_checkpoint(grant.attempt_id, grant.token, at) == pointed
    with pytest.raises(QueueError, match="step 10 comes after that of step 20"):
        queue.set_checkpoint(grant.attempt_id, grant.token, {**at, "step": 10})
    lose(queue, grant)
    clock.advance(10)
    resumed = run(queue, job)
    assert resumed.checkpoint == pointed.checkpoint
    back = queue.set_checkpoint(resumed.attempt_id, resumed.token, {**at, "step": 10})
    assert back.checkpoint is not None
    assert back.checkpoint["step"] == 10


@pytest.mark.parametrize(
    ("failure", "state"),
    [("user", "failed"), ("data", "failed"), ("nan", "failed"), ("oom", "queued"), ("infra", "queued")],
)
def test_what_follows_a_report_depends_on_its_class(queue: Queue, clock: FakeClock, failure: str, state: str) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    after = queue.fail(grant.attempt_id, grant.token, {"class": failure, "message": "what happened"})
    assert after.state == state
    assert after.error == {"class": failure, "message": "what happened", "attempt": grant.attempt_id}
    assert after.not_before == (clock.now + 2.0 if state == "queued" else None)


def test_the_retry_budget_runs_out_and_a_persons_retry_renews_it(queue: Queue, clock: FakeClock) -> None:
    job, _ = queue.submit(train_document(max_retries=1), owner="ann")
    assert lose(queue, run(queue, job)).state == JobState.QUEUED
    clock.advance(10)
    failed = lose(queue, run(queue, job))
    assert failed.state == JobState.FAILED
    assert "1 retries allowed; see queue.max_retries" in failed.reason
    again = queue.retry(job.id, "ann")
    assert (again.state, again.error, again.finished_at, again.not_before) == (JobState.QUEUED, None, None, None)
    assert lose(queue, run(queue, job)).state == JobState.QUEUED
    assert [attempt.number for attempt in queue.attempts(job.id)] == [1, 2, 3]


def test_a_job_that_comes_further_between_its_losses_has_all_its_retries_again(queue: Queue, clock: FakeClock) -> None:
    job, _ = queue.submit(train_document(max_retries=1), owner="ann")
    for step in (10, 20, 30):
        grant = run(queue, job)
        queue.set_checkpoint(grant.attempt_id, grant.token, {"path": "/c", "step": step, "sha256": "0", "bytes": 1})
        after = lose(queue, grant)
        assert (after.state, after.not_before) == (JobState.QUEUED, clock.now + 2.0)
    assert lose(queue, run(queue, job)).state == JobState.FAILED
    queue.retry(job.id, "ann", from_start=True)
    # The way it has before it again is measured by itself.
    for step in (10, 20):
        grant = run(queue, job)
        queue.set_checkpoint(grant.attempt_id, grant.token, {"path": "/c", "step": step, "sha256": "0", "bytes": 1})
        assert lose(queue, grant).state == JobState.QUEUED


def test_a_report_in_bytes_that_no_database_takes_is_stored_cleaned(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    failed = queue.fail(grant.attempt_id, grant.token, {"class": "user", "message": "a\0b\ud800c\u00f6"})
    assert failed.error is not None
    assert failed.error["message"] == "ab?c\u00f6"


@pytest.mark.parametrize("from_start", [False, True])
def test_a_retry_keeps_the_checkpoint_unless_told_otherwise(queue: Queue, from_start: bool) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    queue.heartbeat(grant.attempt_id, grant.token, {"step": 1})
    queue.set_checkpoint(grant.attempt_id, grant.token, {"path": "/c", "step": 1, "sha256": "0", "bytes": 1})
    queue.fail(grant.attempt_id, grant.token, {"class": "nan", "message": "x"})
    again = queue.retry(job.id, "ann", from_start=from_start)
    assert (again.checkpoint is None, again.progress is None) == (from_start, from_start)


def test_unknown_failure_classes_are_refused(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    with pytest.raises(QueueError, match="user, data, nan"):
        queue.fail(grant.attempt_id, grant.token, {"class": "bad luck", "message": "x"})
    assert queue.get(job.id).state == JobState.RUNNING


def test_a_queued_job_is_cancelled_at_once_and_for_good(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    cancelled = queue.cancel(job.id, "ann")
    assert cancelled.state == JobState.CANCELLED
    assert queue.cancel(job.id, "ann") == cancelled
    assert [event.kind for event in queue.events(job.id)].count("cancelled") == 1


def test_a_running_job_is_told_to_stop_and_is_not_cancelled_before_it_is_gone(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    asked = queue.cancel(job.id, "ann")
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    assert queue.cancel(job.id, "ann") == asked
    assert queue.heartbeat(grant.attempt_id, grant.token) == "cancel"
    queue.fail(grant.attempt_id, grant.token, {"class": "cancelled", "message": "told to stop"})
    assert queue.get(job.id).state == JobState.RUNNING
    assert lose(queue, grant).state == JobState.CANCELLED


def test_a_completion_that_comes_before_the_end_of_a_cancel_wins(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    grant = run(queue, job)
    queue.cancel(job.id, "ann")
    assert queue.complete(grant.attempt_id, grant.token, {}).state == JobState.SUCCEEDED
    with pytest.raises(IllegalTransitionError, match="already ended"):
        queue.cancel(job.id, "ann")
    with pytest.raises(IllegalTransitionError, match="only failed and cancelled"):
        queue.retry(job.id, "ann")


def test_a_starting_job_that_is_being_cancelled_cannot_be_claimed(queue: Queue) -> None:
    job, _ = queue.submit(train_document(), owner="ann")
    attempt_id = start(queue, job)
    queue.cancel(job.id, "ann")
    with pytest.raises(AttemptFencedError, match="being cancelled"):
        queue.claim(attempt_id, "code", INSTANCE)
