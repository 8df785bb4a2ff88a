from __future__ import annotations

import os
import signal

import pytest

from segfleet.errors import SettingsError
from segfleet_jobs.measuring import in_fresh_process

pytestmark = pytest.mark.integration


def test_answers_raises_or_is_killed() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError):
        in_fresh_process(os.stat, "/nowhere")
    with pytest.raises(SettingsError, match="was killed, most likely for lack of memory"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)
