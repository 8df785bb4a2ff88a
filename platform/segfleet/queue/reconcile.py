"""What to do about an attempt, given what the queue knows and what Ray says: a pure decision."""

from __future__ import annotations

from dataclasses import dataclass

from segfleet.cluster.launcher import RayJobStatus
from segfleet.queue.model import Attempt, Job
from segfleet.queue.states import AttemptState, FailureClass, JobState

# A driver that has delivered its result gets this long to leave by itself.
LEAVE_S = 30.0
# An ended attempt that Ray does not get rid of holds its resources for no longer than this.
GIVE_UP_S = 120.0
_TAKEN_BACK = "the cluster took its nodes for others"
# Those that ended by their own report are on their way out.
_LEAVING = (AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.PREEMPTED)


@dataclass(frozen=True, slots=True)
class Sight:
    """What Ray said of an attempt.

    Attributes:
        session: Name of the head's life that said it.
        status: None: that head does not know the attempt.
        failed: That head answers, but not about this attempt.
    """

    session: str
    status: RayJobStatus | None
    failed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether Ray knows of no process of it."""
        return not self.failed and (self.status is None or self.status.is_terminal)

    @property
    def is_held(self) -> bool:
        """Whether the cluster keeps it from running; one that had begun was taken off its nodes."""
        return self.status is not None and self.status.is_held

    def restarted(self, attempt: Attempt) -> bool:
        """Whether it comes from another life of the head than the one that accepted the attempt."""
        return attempt.ray_session not in (None, self.session)


@dataclass(frozen=True, slots=True)
class Submit:
    """Send it to Ray, which has not got it."""


@dataclass(frozen=True, slots=True)
class Adopt:
    """Ray has got it, though we did not hear the answer."""

    session: str


@dataclass(frozen=True, slots=True)
class Lose:
    """It is gone without a result."""

    message: str
    failure: FailureClass = FailureClass.INFRA


@dataclass(frozen=True, slots=True)
class Expire:
    """The job's time limit is used up."""

    message: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask Ray to stop it."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job is to be cancelled, and the attempt is gone."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """It was asked to stop, and is gone."""


@dataclass(frozen=True, slots=True)
class Close:
    """Nothing more will come of it: copy the end of its log and forget it.

    Attributes:
        abandoned: Its process may still be there.
        without_log: Even if the end of its log is not to be had.
    """

    abandoned: bool = False
    without_log: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """All is well, or nothing can be known now."""


Action = Submit | Adopt | Lose | Expire | Stop | Cancelled | Preempted | Close | Leave


def decide_alive(
    job: Job, attempt: Attempt, sight: Sight | None, *, overdue: str, over_time: str, out_of_grace: bool
) -> Action:
    """What to do about an attempt that may still write.

    Args:
        job: Its job.
        attempt: The job's current attempt.
        sight: What Ray says; None: Ray cannot be asked.
        overdue: Why its lease or start deadline is over; empty: it is not.
        over_time: How the job's time limit was used up; empty: it is not.
        out_of_grace: It was asked to stop, and had its time to write a checkpoint.
    """
    unsent = attempt.state == AttemptState.STARTING and attempt.ray_session is None
    # An attempt that Ray may never have got waits for Ray, however long, instead of using up a retry.
    is_preempting = job.state == JobState.PREEMPTING and not job.cancel_requested
    if overdue and is_preempting:
        return Preempted()
    if overdue and (job.cancel_requested or not unsent):
        if sight is not None and sight.restarted(attempt):
            return Lose(f"the cluster restarted: {overdue}", FailureClass.RESTART)
        return Lose(overdue)
    if over_time:
        return Expire(over_time)
    if sight is None or sight.failed:
        return Leave()
    if job.cancel_requested:
        return _cancel(attempt, sight)
    # A restarted head knows nothing of the old head's processes: such an attempt has its grace to go by itself.
    if is_preempting and sight.is_over and (out_of_grace or not sight.restarted(attempt)):
        return Preempted()
    if is_preempting and out_of_grace:
        return Stop()
    if sight.status is None:
        return _unknown_to_ray(attempt, sight)
    if sight.is_held and attempt.state == AttemptState.RUNNING:
        return Preempted() if is_preempting else Lose(_TAKEN_BACK, FailureClass.RESTART)
    if sight.status.is_terminal:
        return Lose(f"Ray says {sight.status.state}: {sight.status.message or 'no explanation'}")
    return Adopt(sight.session) if unsent else Leave()


def decide_ended(attempt: Attempt, sight: Sight | None, age_s: float) -> Action:
    """What to do about an attempt that has ended for the queue, but perhaps not at Ray.

    Args:
        attempt: An attempt that is no longer alive and not closed.
        sight: What Ray says; None: Ray cannot be asked.
        age_s: Seconds since this service first saw that it has ended.
    """
    if sight is None:
        return Leave()
    given_up = age_s > GIVE_UP_S
    if sight.is_over or given_up:
        return Close(abandoned=not sight.is_over, without_log=given_up)
    leaves_by_itself = attempt.state in _LEAVING and age_s < LEAVE_S
    return Leave() if leaves_by_itself else Stop()


def _cancel(attempt: Attempt, sight: Sight) -> Action:
    if sight.status is not None:
        return Cancelled() if sight.status.is_terminal else Stop()
    # A head that restarted knows nothing of the old head's processes: the lease has to run out first.
    return Leave() if sight.restarted(attempt) and attempt.state == AttemptState.RUNNING else Cancelled()


def _unknown_to_ray(attempt: Attempt, sight: Sight) -> Action:
    if attempt.ray_session is None and attempt.state == AttemptState.STARTING:
        return Submit()
    if not sight.restarted(attempt):
        return Lose("Ray does not know it any more")
    if attempt.state == AttemptState.RUNNING:
        return Leave()
    return Lose("the cluster restarted before it began", FailureClass.RESTART)
