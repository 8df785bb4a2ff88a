"""Who may write for a job: one-time codes, tokens and fencing numbers of attempts.

A secret is 256 random bits, given out once and stored as its SHA-256. Whoever writes shows the token of the job's
latest attempt while that attempt is alive; everyone else has lost the right, for good.
"""

from __future__ import annotations

import hashlib
import hmac

from segfleet.errors import AttemptFencedError
from segfleet.queue.model import Attempt, Job
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


def fenced(tx: Transaction, attempt_id: str, token: str, replay: AttemptState | None = None) -> tuple[Job, Attempt]:
    """The job and attempt behind a token that may write.

    Args:
        tx: A write transaction; it holds the job's lock from here on.
        attempt_id: The attempt.
        token: What it shows.
        replay: An end that is let through as well, for a call that is asked again after a lost answer.

    Raises:
        AttemptFencedError: wrong token, the attempt is over, or a later one has taken over.
    """
    job, attempt = _current(tx, attempt_id)
    if not _matches(tx.credentials(attempt_id).token, token):
        raise AttemptFencedError(attempt_id, "wrong token")
    if attempt.state not in (AttemptState.RUNNING, replay):
        raise AttemptFencedError(attempt_id, f"it has ended as {attempt.state}")
    return job, attempt


def is_token(tx: Transaction, attempt_id: str, token: str) -> bool:
    """Whether the token is the attempt's own, whatever has become of the attempt since."""
    return tx.attempt(attempt_id) is not None and _matches(tx.credentials(attempt_id).token, token)


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
