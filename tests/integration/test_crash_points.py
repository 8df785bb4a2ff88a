"""kill -9 of the service at every place where the queue writes, before and after the commit, on both databases.

One story leads through every place. Whoever was asking asks again, the service is started again, and the story must end
as it would have: no job lost, none run twice, none stuck.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import segfleet.queue
from factories import POSTGRES, fresh_database, train_document
from searching import search_spec
from segfleet.cluster.launcher import RayJobStatus, RayState
from segfleet.errors import AttemptFencedError
from segfleet.queue.model import Grant, Job
from segfleet.queue.node_rows import Leaving
from segfleet.queue.states import JobState, is_terminal
from segfleet.spec.resolve import to_document
from storm import Fate, Storm

pytestmark = pytest.mark.integration
BACKENDS = ["sqlite", *(["postgres"] if POSTGRES else [])]
INSTANCE = "0123456789abcdef"
RULES = {"preempt_for_priority": True, "min_run": "1s", "grace": "10s"}


def writing_functions() -> set[str]:
    """Every function of the queue that opens a write transaction, fenced or not, read from its source."""
    found = set()
    for path in Path(str(segfleet.queue.__path__[0])).glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef) and re.search(r"(store|lead)\.write\(\)", ast.unparse(function)):
                found.add(function.name)
    # The fence itself; a lease that is given back, and the board, for which see test_several_servers.
    return found - {"write", "release", "publish"}


POINTS = sorted(writing_functions())
RAY_POINTS = ["ray.submit", "ray.stop", "ray.status", "ray.logs", "ray.session", "ray.machines"]


class Story:
    """Users and drivers of one storm, who ask again until they are answered."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.completed: Counter[str] = Counter()

    def submit(self, name: str, workers: int = 2, **queue: Any) -> Job:
        document = {**train_document(workers, **queue), "name": name}
        job: Job = self.storm.insist("submit", document, owner="ann", key=name)[0]
        return job

    def job(self, job: Job) -> Job:
        found: Job = self.storm.insist("get", job.id)
        return found

    def claim(self, job: Job) -> Grant:
        """The job's present attempt comes to life."""
        for _ in range(20):
            attempt_id = f"{job.id}-a{self.job(job).attempt}"
            found = self.storm.ray.jobs.get(attempt_id)
            if found is not None and self.job(job).state == JobState.STARTING:
                try:
                    grant: Grant = self.storm.insist("claim", attempt_id, found.env["SEGFLEET_CODE"], INSTANCE)
                    return grant
                except AttemptFencedError:
                    pass  # its code was replaced, or it was lost; the next attempt comes
            self.storm.step(3.0)
        raise AssertionError(f"{job.id} does not start: {self.job(job)}")

    def beat(self, grant: Grant) -> str:
        command: str = self.storm.insist("heartbeat", grant.attempt_id, grant.token, {"step": 1})
        return command

    def checkpoint(self, grant: Grant, step: int) -> None:
        document = {"path": f"/c/{grant.attempt_id}", "step": step, "sha256": "0", "bytes": 1}
        self.storm.insist("set_checkpoint", grant.attempt_id, grant.token, document)

    def end(self, grant: Grant, verb: str, *more: Any) -> None:
        self.storm.insist(verb, grant.attempt_id, grant.token, *more)
        self.storm.ray.end(grant.attempt_id, RayState.SUCCEEDED if verb == "complete" else RayState.FAILED)
        self.completed[grant.job_id] += verb == "complete"
        self.storm.step()

    def until(self, job: Job, *states: JobState, seconds: float = 3.0) -> Job:
        for _ in range(60):
            found = self.job(job)
            if found.state in states:
                return found
            self.storm.step(seconds)
        raise AssertionError(f"{job.id} is stuck: {self.job(job)}")


def tell(story: Story) -> dict[str, JobState]:
    """Lead through every place where the queue writes; the end of each job."""
    storm = story.storm
    storm.insist("set_policy", "cluster", "cluster", RULES)
    first = story.submit("first", max_retries=5)
    grant = story.claim(first)
    story.beat(grant)
    fault = {"rank": 1, "phase": "data", "step": 3, "message": "rank 1 stood still"}
    storm.insist("note_fault", grant.attempt_id, grant.token, "fault", fault)
    story.checkpoint(grant, 10)
    _make_room(story, grant)
    _leave(story, first)
    _pause_and_lose(story, first)
    _cancel(story)
    _search(story)
    _follow(story)
    grant = story.claim(first)
    assert grant.checkpoint is not None
    assert grant.checkpoint["step"] == 10
    story.end(grant, "complete", {"miou": 0.5})
    return {job.name: job.state for job in storm.insist("list")}


def _make_room(story: Story, grant: Grant) -> None:
    storm = story.storm
    storm.clock.advance(5.0)
    story.beat(grant)
    urgent = story.submit("urgent", priority=90)
    for _ in range(5):
        storm.step()
        if story.beat(grant) == "preempt":
            break
    story.end(grant, "yield_")
    story.end(story.claim(urgent), "complete", {})
    # Another makes no room by itself: it is stopped when its grace is over.
    first = story.claim(story.storm.insist("get", grant.job_id))
    storm.clock.advance(5.0)
    story.beat(first)
    urgent = story.submit("urgent-too", priority=90)
    for _ in range(8):
        storm.step(3.0)
        try:
            story.beat(first)
        except AttemptFencedError:
            break
    story.end(story.claim(urgent), "complete", {})


def _leave(story: Story, job: Job) -> None:
    """A later group of workers takes over, and the machine below it is about to go."""
    storm, grant = story.storm, story.claim(job)
    speaks = grant.attempt_id, grant.token
    _, cut_off = storm.insist("begin_group", *speaks, "job")
    _, token = storm.insist("begin_group", *speaks, "job")
    with pytest.raises(AttemptFencedError, match="a later group"):
        storm.insist("heartbeat", grant.attempt_id, cut_off)
    storm.insist("leave", grant.attempt_id, token, [Leaving("ab12", "10.0.0.7", None)])
    assert storm.insist("heartbeat", grant.attempt_id, token) == "preempt"
    story.end(grant, "yield_")


def _pause_and_lose(story: Story, job: Job) -> None:
    storm = story.storm
    grant = story.claim(job)
    storm.insist("pause", job.id, "ann")
    assert story.beat(grant) == "preempt"
    story.end(grant, "yield_")
    story.until(job, JobState.PAUSED)
    storm.insist("set_priority", job.id, "ann", 51)
    storm.insist("resume", job.id, "ann")
    # This driver dies without a word.
    grant = story.claim(job)
    storm.ray.end(grant.attempt_id, RayState.FAILED, "killed")
    story.until(job, JobState.QUEUED)
    storm.insist("pause", job.id, "ann")
    # A failure of the user's own, and a person's retry.
    broken = story.submit("broken")
    story.end(story.claim(broken), "fail", {"class": "user", "message": "no"})
    story.until(broken, JobState.FAILED)
    storm.insist("retry", broken.id, "ann")
    story.end(story.claim(broken), "complete", {})


def _cancel(story: Story) -> None:
    storm = story.storm
    running = story.submit("cancelled-running")
    story.claim(running)
    # Meanwhile there is no room for another, which does not wait for ever.
    story.until(story.submit("late", start_within="5s"), JobState.FAILED)
    storm.insist("cancel", running.id, "ann")
    waiting = story.submit("cancelled-waiting")
    storm.insist("cancel", waiting.id, "ann")
    story.until(running, JobState.CANCELLED)
    story.until(waiting, JobState.CANCELLED)


def _search(story: Story) -> None:
    storm, document = story.storm, to_document(search_spec(name="search"))
    grant = story.claim(storm.insist("submit", document, owner="ann", key="search")[0])
    trial = grant.attempt_id, grant.token, 1
    storm.insist("trials.add", *trial, "trial", {"optim.lr": 0.1}, 10)
    storm.insist("trials.move", *trial, "running")
    shown = {"validation": 1, "step": 10, "value": 0.5, "miou": 0.5, "seconds": 1.0}
    storm.insist("trials.report", *trial, shown)
    storm.insist("trials.set_checkpoint", *trial, {"path": "/c/1", "step": 10, "sha256": "0", "bytes": 1})
    storm.insist("trials.measured", *trial, {"parameters": 5})
    storm.insist("trials.move", *trial, "succeeded")
    (found,) = storm.insist("trials.of_job", grant.job_id)[1]
    reports = [{**shown, "at": found["reports"][0]["at"]}]
    assert (found["state"], found["reports"], found["parameters"]) == ("succeeded", reports, 5)
    story.end(grant, "complete", {})


def _follow(story: Story) -> None:
    storm = story.storm
    parent = story.submit("parent")
    child = story.submit("child", after=[parent.id])
    other = story.submit("other", after=[f"{parent.id}:failed"])
    story.end(story.claim(parent), "complete", {})
    story.end(story.claim(child), "complete", {})
    story.until(other, JobState.FAILED)
    first = next(job for job in storm.insist("list") if job.name == "first")
    storm.insist("resume", first.id, "ann")


ENDS = {
    "first": JobState.SUCCEEDED,
    "urgent": JobState.SUCCEEDED,
    "urgent-too": JobState.SUCCEEDED,
    "broken": JobState.SUCCEEDED,
    "cancelled-running": JobState.CANCELLED,
    "cancelled-waiting": JobState.CANCELLED,
    "late": JobState.FAILED,
    "search": JobState.SUCCEEDED,
    "parent": JobState.SUCCEEDED,
    "child": JobState.SUCCEEDED,
    "other": JobState.FAILED,
}


@pytest.fixture
def storm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storm]:
    made = Storm(tmp_path, fresh_database(request.param, tmp_path), lease_s=30.0, start_deadline_s=60.0)
    yield made
    made.kill()


def check(storm: Storm) -> None:
    story = Story(storm)
    assert tell(story) == ENDS
    assert not any(count > 1 for count in Counter(storm.ray.runs).values()), "an attempt was run twice"
    for job in storm.insist("list"):
        assert is_terminal(job.state)
        attempts = storm.insist("attempts", job.id)
        assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
        assert sum(attempt.state == "succeeded" for attempt in attempts) == (job.state == JobState.SUCCEEDED)
    # Nothing is left that would hold the cluster.
    assert all(RayJobStatus(job.state).is_terminal for job in storm.ray.jobs.values())


@pytest.mark.parametrize("storm", BACKENDS, indirect=True)
def test_the_story_undisturbed(storm: Storm) -> None:
    storm.start()
    check(storm)
    assert storm.deaths == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS + RAY_POINTS)
@pytest.mark.parametrize("storm", BACKENDS, indirect=True)
def test_a_kill_at_every_point_changes_no_end(storm: Storm, point: str, when: str) -> None:
    if point == "_new_code":
        # Reached only by a service that finds an attempt which another one had made and not sent.
        storm.start(Fate("_start", "after"))
        with pytest.MonkeyPatch.context() as patch:
            start = storm.start
            patch.setattr(
                storm, "start", lambda fate=None: start(Fate(point, when) if len(storm.deaths) == 1 else fate)
            )
            check(storm)
    else:
        storm.start(Fate(point, when))
        check(storm)
    assert f"{point}:{when}" in storm.deaths, "the story does not come by this point"


@pytest.mark.parametrize("storm", BACKENDS, indirect=True)
@pytest.mark.parametrize("delay_s", [0.005, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_kill_while_the_tables_are_made_or_soon_after_loses_nothing(storm: Storm, delay_s: float) -> None:
    storm.start(Fate(delay_s=delay_s))
    check(storm)
