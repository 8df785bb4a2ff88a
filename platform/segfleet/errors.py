"""Every error a user can meet.

    SegfleetError
    |-- SpecError           a job spec is wrong; carries all problems at once
    |-- DataError           a dataset, shard, picture or mask is missing or damaged
    |   `-- FileMissingError        a dataset's folder has no such file
    |-- QueueError
    |   |-- UnknownJobError
    |   |-- IllegalTransitionError
    |   |-- JobChangedError         the job is no longer as its caller knew it
    |   |-- AttemptFencedError      this attempt has lost its right to write
    |   |-- IdempotencyConflictError
    |   |-- QuotaExceededError      project or user have as many waiting jobs as they may
    |   `-- QueueUnavailableError   the database is locked, full or gone; worth another try
    |       `-- LeadershipLostError     another server leads; this one writes nothing more as the leader
    |-- CheckpointError     a checkpoint is damaged or does not fit the model
    |-- ModelError          the registry has no such model, version or alias
    |   `-- ModelRefusedError       the registry does not take a model
    |-- LaunchError         the cluster refused, or cannot be reached
    |-- ServiceError        the service refused a request, or cannot be reached
    |   |-- TooManyStreamsError     no further stream can be opened
    |   `-- TryBusyError            somebody else's picture is being tried
    |-- AccessError         the user's role, projects or jobs do not allow the request
    |   |-- UnauthorizedError       no valid token
    |   `-- UnknownTokenError       no token of that id
    |-- WebhookError        a webhook's address or events cannot be used
    |   `-- UnknownWebhookError     no webhook of that id
    `-- SettingsError       home folder, port, token or configuration

An error says what, which value, and what to do. Errors travel between processes, so they are built from positional
strings alone and survive pickling. `code` is stable: it goes over HTTP and into failure classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


class SegfleetError(Exception):
    """Root of the tree. The first argument is the whole message for a person."""

    code = "error"

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.__class__.__doc__ or self.code


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a document: where, what, and the way out."""

    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text} ({self.hint})" if self.hint else text


class SpecError(SegfleetError):
    """A job spec is wrong. `problems` holds all that was found."""

    code = "spec_invalid"

    def __init__(self, problems: Sequence[Problem], source: str = "spec") -> None:
        super().__init__(tuple(problems), source)
        self.problems, self.source = tuple(problems), source

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.source}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  - {problem}" for problem in self.problems)])

    def as_json(self) -> list[dict[str, str]]:
        """The problems as plain data, for an HTTP answer."""
        return [asdict(problem) for problem in self.problems]


class DataError(SegfleetError):
    """A dataset, shard, picture or mask is missing or damaged."""

    code = "data"


class FileMissingError(DataError):
    """A dataset's folder has no such file."""

    code = "file_missing"

    def __init__(self, file: str, address: str) -> None:
        super().__init__(file, address)
        self.file, self.address = file, address

    def __str__(self) -> str:
        return f"{self.address} has no file {self.file!r}; check the address, restore it or prepare the dataset again"


class QueueError(SegfleetError):
    """The queue refuses an operation."""

    code = "queue"


class UnknownJobError(QueueError):
    """No job of that id."""

    code = "unknown_job"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"there is no job {self.job_id!r}; 'segfleet jobs' lists them"


class IllegalTransitionError(QueueError):
    """The job's state does not allow the operation."""

    code = "illegal_transition"

    def __init__(self, job_id: str, state: str, operation: str, hint: str = "") -> None:
        super().__init__(job_id, state, operation, hint)
        self.job_id, self.state, self.operation, self.hint = job_id, state, operation, hint

    def __str__(self) -> str:
        text = f"cannot {self.operation} job {self.job_id}: it is {self.state}"
        return f"{text}; {self.hint}" if self.hint else text


class JobChangedError(QueueError):
    """The job is no longer as its caller knew it."""

    code = "job_changed"

    def __init__(self, job_id: str, version: str, state: str) -> None:
        super().__init__(job_id, version, state)
        self.job_id, self.version, self.state = job_id, version, state

    def __str__(self) -> str:
        return f"job {self.job_id} has changed: it is {self.state} in version {self.version} now; look at it again"


class AttemptFencedError(QueueError):
    """The attempt is not (or no longer) the job's current one: it must stop and write nothing."""

    code = "attempt_fenced"

    def __init__(self, attempt_id: str, reason: str) -> None:
        super().__init__(attempt_id, reason)
        self.attempt_id, self.reason = attempt_id, reason

    def __str__(self) -> str:
        return f"attempt {self.attempt_id} may not write: {self.reason}"


class IdempotencyConflictError(QueueError):
    """An idempotency key was used again with another body."""

    code = "idempotency_conflict"

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(key, job_id)
        self.key, self.job_id = key, job_id

    def __str__(self) -> str:
        return f"key {self.key!r} already belongs to job {self.job_id} with another spec; use a new key"


class QuotaExceededError(QueueError):
    """A project or a user has as many waiting jobs as its quota allows."""

    code = "quota_exceeded"

    def __init__(self, who: str, waiting: str, allowed: str) -> None:
        super().__init__(who, waiting, allowed)
        self.who, self.waiting, self.allowed = who, waiting, allowed

    def __str__(self) -> str:
        return (
            f"{self.who} has {self.waiting} waiting jobs, its quota is {self.allowed}; "
            "wait for one to start, cancel one, or ask the operator ('segfleet quota show')"
        )


class QueueUnavailableError(QueueError):
    """The queue's database is locked, full or gone; nothing was stored."""

    code = "queue_unavailable"


class LeadershipLostError(QueueUnavailableError):
    """Another server leads the queue, or may: nothing was stored."""

    code = "leadership_lost"


class CheckpointError(SegfleetError):
    """A checkpoint is damaged or does not fit the model."""

    code = "checkpoint"


class ModelError(SegfleetError):
    """The registry has no such model, version or alias, or the model cannot be loaded."""

    code = "model"


class ModelRefusedError(ModelError):
    """A model that a job wants to register is not one of its own, or badly described."""

    code = "model_refused"


class LaunchError(SegfleetError):
    """The cluster refused a submission or cannot be reached."""

    code = "launch"


class ServiceError(SegfleetError):
    """The service refused a request or cannot be reached."""

    code = "service"


class TooManyStreamsError(ServiceError):
    """No further stream can be opened."""

    code = "too_many_streams"

    def __init__(self, whose: str, most: str) -> None:
        super().__init__(whose, most)
        self.whose, self.most = whose, most

    def __str__(self) -> str:
        return f"{self.whose} has {self.most} streams open, which is the most; close some"


class TryBusyError(ServiceError):
    """Somebody else's picture is being tried."""

    code = "try_busy"

    def __str__(self) -> str:
        return "another picture is being tried, and this server takes one at a time; try again in a minute"


class AccessError(SegfleetError):
    """The user may not do this, or not to this job."""

    code = "access"


class UnauthorizedError(AccessError):
    """A request without a valid token."""

    code = "unauthorized"


# Anything longer may be a token itself, which no message repeats.
_LONGEST_TOKEN_ID = 16


class UnknownTokenError(AccessError):
    """No token of that id."""

    code = "unknown_token"

    def __init__(self, token_id: str) -> None:
        super().__init__(token_id)
        self.token_id = token_id

    def __str__(self) -> str:
        shown = repr(self.token_id) if len(self.token_id) <= _LONGEST_TOKEN_ID else "of this text"
        return f"there is no token {shown}; 'segfleet token list' lists them"


class WebhookError(SegfleetError):
    """A webhook's address or events cannot be used."""

    code = "webhook"


class UnknownWebhookError(WebhookError):
    """No webhook of that id."""

    code = "unknown_webhook"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(webhook_id)
        self.webhook_id = webhook_id

    def __str__(self) -> str:
        return f"there is no webhook {self.webhook_id!r}; 'segfleet webhook list' lists them"


class SettingsError(SegfleetError):
    """The home folder, a port, a token or a setting is unusable."""

    code = "settings"
