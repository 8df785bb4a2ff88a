from __future__ import annotations

from pathlib import Path

import pytest

from fakes import FakeClock
from segfleet.errors import LaunchError
from segfleet.queue import logcopy
from segfleet.queue.logcopy import LogCopies

ATTEMPT = "job-aaaaaaaa-a1"


def test_a_log_is_kept_up_to_a_size_and_then_not_asked_for_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logcopy, "MAX_LOG_BYTES", 10)
    clock, fetches, text = FakeClock(), list[str](), "12345678"

    def fetch(attempt_id: str) -> str:
        fetches.append(attempt_id)
        return text

    def follow() -> bytes:
        clock.advance(60)
        LogCopies(tmp_path, fetch, clock).follow(ATTEMPT)
        return (tmp_path / f"{ATTEMPT}.log").read_bytes()

    assert follow() == b"12345678"
    text = "1234567890"
    assert follow() == b"1234567890"
    text = "1234567890abcd"
    kept = follow()
    assert kept.startswith(b"1234567890\n[truncated: ")
    assert follow() == kept
    assert len(fetches) == 3


def test_the_end_is_copied_at_once_but_after_a_failure_when_it_is_time_to(tmp_path: Path) -> None:
    clock, failing = FakeClock(), False

    def fetch(_: str) -> str:
        clock.advance(1.0)
        if failing:
            raise LaunchError("Ray answers with HTTP 500")
        return "all"

    copies = LogCopies(tmp_path, fetch, clock)
    copies.follow(ATTEMPT)
    failing = True
    with pytest.raises(LaunchError):
        copies.finish(ATTEMPT)
    clock.advance(19.0)
    assert not copies.finish(ATTEMPT)
    failing = False
    clock.advance(1.0)
    assert copies.finish(ATTEMPT)
