"""A service saved while it runs, and another one that starts on what was saved."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from factories import POSTGRES
from processes import client_of, free_port, running
from segfleet.client import Client

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SPEC = {"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"}


def at(home: Path) -> dict[str, str]:
    return {**os.environ, "SEGFLEET_HOME": str(home)}


def told(client: Client, job_ids: list[str]) -> list[Any]:
    """Everything that must be the same afterwards: jobs, histories, tokens."""
    jobs = [client.job(job_id) for job_id in job_ids]
    # What waits for the cluster is told anew by each leader.
    kept = [{key: job[key] for key in ("id", "state", "spec", "owner", "project", "created_at")} for job in jobs]
    events = [[event["kind"] for event in client.events(job_id)] for job_id in job_ids]
    return [kept, events, client.tokens()]


def fill(home: Path, port: int) -> tuple[list[Any], list[str], str]:
    with client_of(home, port) as client:
        jobs = [client.submit({**SPEC, "out": f"/data/{name}"}, key=name)["id"] for name in "abc"]
        client.cancel(jobs[1])
        secret = client.create_token("ann", projects=["maps"])["token"]
        return told(client, jobs), jobs, secret


def compare(home: Path, port: int, before: list[Any], jobs: list[str], secret: str) -> None:
    with client_of(home, port) as client:
        after = told(client, jobs)
        assert client.submit({**SPEC, "out": "/data/a"}, key="a")["id"] == jobs[0]
    assert after[:2] == before[:2]
    assert [t["id"] for t in after[2]] == [t["id"] for t in before[2]]
    with Client(f"http://127.0.0.1:{port}", secret) as ann:
        assert ann.job(jobs[0])["id"] == jobs[0]


def test_sqlite_is_saved_under_a_running_service_and_another_starts_on_it(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "home", port):
        before, jobs, secret = fill(tmp_path / "home", port)
        command = [sys.executable, "-m", "segfleet.backup"]
        subprocess.run([*command, "save", tmp_path / "saved"], env=at(tmp_path / "home"), check=True)
    subprocess.run([*command, "restore", tmp_path / "saved"], env=at(tmp_path / "elsewhere"), check=True)
    with running(tmp_path / "elsewhere", port):
        compare(tmp_path / "elsewhere", port, before, jobs, secret)


def documented(tool: str) -> list[str]:
    """The command of docs/operations.md that begins with a tool."""
    lines = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines()
    [line] = [line.strip() for line in lines if re.match(rf"    {tool} ", line)]
    return shlex.split(line)


@pytest.mark.skipif(not POSTGRES, reason="runs under scripts/with_postgres.py")
def test_postgres_is_saved_and_restored_as_documented(tmp_path: Path) -> None:
    if shutil.which("pg_dump") is None:
        pytest.skip("has no pg_dump")
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for name in ("before", "after"):
            connection.execute(text(f"DROP DATABASE IF EXISTS backup_{name}"))
            connection.execute(text(f"CREATE DATABASE backup_{name}"))
    admin.dispose()
    urls = {name: make_url(POSTGRES).set(database=f"backup_{name}") for name in ("before", "after")}
    port = free_port()

    def variables(name: str) -> dict[str, str]:
        return {"SEGFLEET_DATABASE_URL": urls[name].render_as_string(hide_password=False)}

    with running(tmp_path / "home", port, **variables("before")):
        before, jobs, secret = fill(tmp_path / "home", port)
        _run(documented("pg_dump"), urls["before"], tmp_path)
    _run(documented("pg_restore"), urls["after"], tmp_path)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shutil.copy(tmp_path / "home" / "token", tmp_path / "elsewhere" / "token")
    with running(tmp_path / "elsewhere", port, **variables("after")):
        compare(tmp_path / "elsewhere", port, before, jobs, secret)


def _run(command: list[str], url: Any, folder: Path) -> None:
    libpq = url.set(drivername="postgresql").render_as_string(hide_password=False)
    words = [word.replace("postgresql://segfleet@db.example.org/segfleet", libpq) for word in command]
    assert words != command, command
    subprocess.run(words, cwd=folder, check=True)
