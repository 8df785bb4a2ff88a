"""Two services on homes of their own, but with one database."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from segfleet.cluster.ports import free_ports
from segfleet.queue.store import Store

pytestmark = pytest.mark.integration


def test_a_second_service_on_one_database_does_not_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("SEGFLEET_")},
        "SEGFLEET_HOME": str(tmp_path / "second"),
        "SEGFLEET_PORT": str(free_ports(1)[0]),
        "SEGFLEET_RAY_ADDRESS": "http://127.0.0.1:1",
        "SEGFLEET_MLFLOW_URI": "http://127.0.0.1:1",
        "SEGFLEET_DATABASE_URL": url,
    }
    with closing(Store(url)) as first, first.exclusive():
        second = subprocess.run(
            [sys.executable, "-P", "-m", "segfleet.server"], env=environment, capture_output=True, text=True, timeout=60
        )
    assert second.returncode == 2
    assert "another segfleet service already uses this database" in second.stderr
    assert "Traceback" not in second.stderr
