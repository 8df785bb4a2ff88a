"""Who may write for a job: one-time codes, tokens and fencing numbers of attempts.

A secret is 256 random bits, given out once and stored as its SHA-256. Whoever writes shows the token of the job's
latest attempt while that attempt is alive; everyone else has lost the right, for good.

The cluster may start an attempt's workers anew while those before them are only cut off, not dead. So each group of
workers gets a number, and shows it behind the token: TOKEN.SCOPE.NUMBER. Of the groups of a scope (the job's own, or
those of one trial) only the latest may write.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TypeGuard

from segfleet.errors import AttemptFencedError
from segfleet.queue.model import Attempt, Document, Job
from segfleet.queue.states import AttemptState
from segfleet.queue.store import Transaction


def digest(secret: str) -> str:
    """SHA-256 of a secret, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def digests(token: str, instance: str) -> dict[str, str]:
    """What is stored of a claim."""
    return {"token_hash": digest(token), "instance_hash": digest(instance)}


def trade_code(tx: Transaction, attempt_id: str, code: str, instance: str) -> tuple[Job, Attempt, str]:
    """The token for a one-time code, derived from code and instance so that the same instance may ask again.

    Returns:
        The job, the attempt as it was before, and the token.

    Raises:
        AttemptFencedError: wrong code, traded by another instance, or the attempt is over or being cancelled.
    """
    job, attempt = _current(tx, attempt_id)
    known = tx.credentials(attempt_id)
    if not _matches(known.code, code):
        raise AttemptFencedError(attempt_id, "wrong code")
    if not attempt.is_alive:
        raise AttemptFencedError(attempt_id, f"it has ended as {attempt.state}")
    if attempt.state == AttemptState.STARTING and job.cancel_requested:
        raise AttemptFencedError(attempt_id, "the job is being cancelled")
    if attempt.state == AttemptState.RUNNING and not _matches(known.instance, instance):
        raise AttemptFencedError(attempt_id, "its code was already traded by another process")
    token = hmac.new(code.encode(), f"{attempt_id}:{instance}".encode(), "sha256").hexdigest()
    return job, attempt, token


def begin_group(tx: Transaction, attempt_id: str, token: str, scope: str) -> tuple[int, str]:
    """The next group of workers of an attempt takes over from those before it in its scope.

    Returns:
        Its number, from 1, and what it shows as its token.

    Raises:
        AttemptFencedError: as of `fenced`.
    """
    _, attempt = fenced(tx, attempt_id, token)
    number = attempt.groups.get(scope, 0) + 1
    tx.change_attempt(attempt.id, {"groups": {**attempt.groups, scope: number}})
    return number, f"{token}.{scope}.{number}"


def group_of(token: str) -> str:
    """Scope and number of the group behind a token; empty: the attempt's own process."""
    return token.partition(".")[2]


def signed(checkpoint: Document, attempt: Attempt, token: str) -> Document:
    """A checkpoint with its writer: the attempt and, where one has set it, the group."""
    group = group_of(token)
    return {**checkpoint, "attempt": attempt.id, **({"group": group} if group else {})}


def is_same_writer(last: Document | None, document: Document) -> TypeGuard[Document]:
    """Whether two signed checkpoints come from the same group of workers."""
    return last is not None and all(document.get(name) == last.get(name) for name in ("attempt", "group"))


def fenced(tx: Transaction, attempt_id: str, token: str, replay: AttemptState | None = None) -> tuple[Job, Attempt]:
    """The job and attempt behind a token that may write.

    Args:
        tx: A write transaction; it holds the job's lock from here on.
        attempt_id: The attempt.
        token: What it shows.
        replay: An end that is let through as well, for a call that is asked again after a lost answer.

    Raises:
        AttemptFencedError: wrong token, the attempt is over, or a later one or a later group of workers has taken over.
    """
    job, attempt = _current(tx, attempt_id)
    if not _matches(tx.credentials(attempt_id).token, token.partition(".")[0]):
        raise AttemptFencedError(attempt_id, "wrong token")
    if attempt.state not in (AttemptState.RUNNING, replay):
        raise AttemptFencedError(attempt_id, f"it has ended as {attempt.state}")
    if group := group_of(token):
        scope, _, number = group.rpartition(".")
        if str(attempt.groups.get(scope, 0)) != number:
            raise AttemptFencedError(attempt_id, "a later group of its workers has taken over")
    return job, attempt


def is_token(tx: Transaction, attempt_id: str, token: str) -> bool:
    """Whether the token is the attempt's own, whatever has become of the attempt since."""
    secret = token.partition(".")[0]
    return tx.attempt(attempt_id) is not None and _matches(tx.credentials(attempt_id).token, secret)


def _current(tx: Transaction, attempt_id: str) -> tuple[Job, Attempt]:
    known = tx.attempt(attempt_id)
    if known is None:
        raise AttemptFencedError(attempt_id, "there is no such attempt")
    # The job's row is the lock: only what is read after it is certain.
    job = tx.job(known.job_id)
    attempt = tx.attempt(attempt_id)
    assert attempt is not None
    if attempt.fence != job.fence:
        raise AttemptFencedError(attempt_id, f"attempt {job.attempt} has taken over")
    return job, attempt


def _matches(known: str | None, secret: str) -> bool:
    return known is not None and hmac.compare_digest(known, digest(secret))
