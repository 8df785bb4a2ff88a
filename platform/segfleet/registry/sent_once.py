"""Requests to MLflow that make something new: each is sent once, whoever asks again first looks what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

_one_at_a_time = threading.Lock()


@contextmanager
def sent_once() -> Iterator[None]:
    """Keep MLflow's client from sending a request again by itself when the answer to it is lost.

    It does so for every kind of request, so a lost answer to one that creates would create twice. The number of tries
    is a variable of the process, read at each request: for as long as the block runs, requests of other threads are
    sent once too.
    """
    with _one_at_a_time:
        before = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw()
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(0)
        try:
            yield
        finally:
            if before is None:
                MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()
            else:
                MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(before)
