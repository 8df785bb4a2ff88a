"""What every kind of job does around its work: claim, beat, and end with a result or a named failure."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from segfleet.errors import AttemptFencedError, SegfleetError
from segfleet.spec.kinds import JobSpec
from segfleet.spec.resolve import resolve_spec
from segfleet_jobs.attempt import AttemptClient, Grant, Heart, Yielded, claim, exit_process
from segfleet_jobs.failure import classify

Work = Callable[[Grant, JobSpec, AttemptClient, Heart], dict[str, Any] | Yielded]


def run_attempt(work: Work) -> int:
    """Run one attempt of a job in this process, which the queue started.

    Args:
        work: Does the job; its return value is the job's result or says that it made room, its exception the
            attempt's failure.

    Returns:
        The process's exit code. The queue does not believe it: success is the completion call.
    """
    signal.signal(signal.SIGTERM, lambda *_: exit_process("stopped by the cluster"))
    try:
        grant = claim(os.environ)
    except SegfleetError as error:
        print(f"segfleet: {error}", file=sys.stderr, flush=True)
        return 3
    client = AttemptClient(grant.credentials)
    try:
        with Heart(client, exit_process) as heart:
            spec = resolve_spec(grant.spec)
            result = work(grant, spec, client, heart)
            if isinstance(result, Yielded):
                print(f"segfleet: makes room; the job goes on from step {result.step}", flush=True)
                client.yield_()
            else:
                client.complete(result)
    except AttemptFencedError as error:
        print(f"segfleet: {error}", file=sys.stderr, flush=True)
        return 3
    except Exception as error:
        traceback.print_exc()  # into the job's log, for the operator; the user gets the sentence
        return _fail(client, error)
    finally:
        client.close()
    return 0


def _fail(client: AttemptClient, error: Exception) -> int:
    failure_class, message = classify(error)
    try:
        client.fail(failure_class, message)
    except SegfleetError as refused:
        print(f"segfleet: {refused}", file=sys.stderr, flush=True)
    return 1
