"""What creates something is sent once; the number of tries is as before when it is done."""

from __future__ import annotations

import pytest
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

from segfleet.registry.sent_once import sent_once

NAME = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@pytest.mark.parametrize("before", [None, "5"])
def test_tries_are_counted_down_for_as_long_as_the_block_runs(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(NAME, raising=False)
    if before is not None:
        monkeypatch.setenv(NAME, before)
    seen = []

    def call() -> None:
        with sent_once():
            seen.append(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        call()
    assert seen == [0]
    assert MLFLOW_HTTP_REQUEST_MAX_RETRIES.get_raw() == before
