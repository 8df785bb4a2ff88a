"""Searches on the command line: the plan, what is left out, and the leaderboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from searching import search_document
from segfleet.cli import jobs, main, searches
from segfleet.client import Client
from serving import API_TOKEN, URL, AppTransport, Service, make_shards

Run = Any
SPACE = {"model.patch_size": [8, 32], "train.crop": [64, 24]}
FIGURES = [(0.6, 2.0), (0.5, 9.0), (0.4, 8.0)]


@pytest.fixture
def run(transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process against the application under test: exit code, stdout, stderr."""

    def make_client(**options: Any) -> Client:
        return Client(URL, API_TOKEN, transport=transport, **options)

    for module in (jobs, searches):
        monkeypatch.setattr(module, "Client", make_client)

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["segfleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def spec(service: Service, tmp_path: Path) -> Path:
    base = {**search_document()["base"], "data": {"shards": make_shards(tmp_path / "shards")}}
    document = search_document(base=base, space=SPACE, search={"max_parallel": 2, "max_worker_hours": 1.5})
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.fixture
def searched(service: Service, spec: Path, run: Run) -> str:
    """A search with trials of its three combinations; the third was stopped."""
    job_id = json.loads(run("submit", str(spec), "--json")[1])["id"]
    attempt_id = service.start(job_id)
    who = (attempt_id, service.claim(attempt_id).json()["token"])
    desk = service.queue.trials
    for number, (value, speed) in enumerate(FIGURES, start=1):
        desk.add(*who, number, "trial", {"model.patch_size": 8, "train.crop": 63 + number}, 40)
        desk.move(*who, number, "running")
        report = {"validation": 1, "step": 10, "value": value, "miou": value, "seconds": 1.0}
        desk.report(*who, number, report)
        desk.measured(*who, number, {"parameters": 5_500_000, "images_per_s": speed, "peak_memory_mib": 300.0})
    desk.move(*who, 1, "succeeded", worker_seconds=7200.0)
    desk.move(*who, 2, "succeeded", worker_seconds=1800.0)
    desk.move(*who, 3, "stopped", why="asha: \x1b[31mbehind", worker_seconds=3600.0)
    return job_id


def test_check_shows_the_plan(run: Run, spec: Path) -> None:
    code, out, err = run("check", str(spec))
    assert code == 0
    assert yaml.safe_load(out)["kind"] == "search"
    assert "3 trials of 4 combinations, by grid, at most 2 at a time, each on 1 worker(s) with 1 CPU and 0 GPU" in err
    assert "budget: 1.5 worker-hours; without it 120 steps at most" in err
    assert "left out as impossible: 1 combination(s)" in err
    assert "model.patch_size=32 train.crop=24: train.crop: 24 is smaller than one patch of 32 pixels" in err
    plan = json.loads(run("check", str(spec), "--json")[1])["plan"]
    assert (plan["combinations"], plan["trials"], plan["parallel"], plan["steps"]) == (4, 3, 2, 120)
    assert plan["impossible"][0]["params"] == {"model.patch_size": 32, "train.crop": 24}


def test_check_of_a_space_that_cannot_be_listed(run: Run, spec: Path) -> None:
    changes = ["search.algorithm=random", "search.trials=7", "space={optim.lr: {min: 0.01, max: 0.1}}"]
    code, _, err = run("check", str(spec), *(part for change in changes for part in ("--set", change)))
    assert code == 0
    assert "7 trials of more than can be listed, by random" in err
    assert "without it 280 steps at most" in err


def test_check_says_what_is_wrong(run: Run, spec: Path) -> None:
    code, _, err = run("check", str(spec), "--set", "space={train.crop: [8]}")
    assert code == 1
    assert "space.train.crop[0]: 8: input should be greater than or equal to 16" in err


def test_submit_names_what_is_left_out(run: Run, spec: Path) -> None:
    code, out, err = run("submit", str(spec))
    assert code == 0
    assert "submitted" in out
    assert "left out as impossible: 1 combination(s)" in err


def test_leaderboard_is_in_the_order_asked_for(run: Run, searched: str) -> None:
    for by, numbers in (("value", [1, 2, 3]), ("cost", [2, 3, 1]), ("speed", [2, 3, 1])):
        found = json.loads(run("leaderboard", searched, "--by", by, "--json")[1])
        assert (found["metric"], found["mode"], found["by"], found["final"]) == ("val/miou", "max", by, [])
        assert [trial["number"] for trial in found["trials"]] == numbers
        best = next(trial for trial in found["trials"] if trial["number"] == 1)
        assert (best["places"], best["value_per_hour"]) == ({"value": 1, "cost": 3, "speed": 3}, pytest.approx(0.3))
        assert {trial["number"] for trial in found["trials"] if trial["is_pareto"]} == {1, 2}


def test_show_has_the_leaderboard(run: Run, searched: str) -> None:
    code, out, _ = run("show", searched)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    head = next(line for line in lines if line[:2] == ["#", "TRIAL"])
    rows = lines[lines.index(head) + 1 :][:3]
    assert [row[:3] for row in rows] == [["1", "1*", "0.6"], ["2", "2*", "0.5"], ["3", "3", "0.4"]]
    assert "patch_size=8 crop=64" in out
    assert "trial 3 stopped: asha: behind" in out
    assert "\x1b" not in out
    shown = json.loads(run("show", searched, "--json")[1])
    assert [trial["number"] for trial in shown["trials"]] == [1, 2, 3]


def test_a_search_without_trials_says_so(run: Run, spec: Path) -> None:
    job_id = json.loads(run("submit", str(spec), "--json")[1])["id"]
    assert "no trial has begun yet" in run("show", job_id)[1]
    assert json.loads(run("leaderboard", job_id, "--json")[1])["trials"] == []


def test_a_leaderboard_of_what_is_no_search_is_refused(run: Run, service: Service) -> None:
    code, _, err = run("leaderboard", service.submit()["id"])
    assert code == 1
    assert "only searches have trials" in err
    assert run("leaderboard", "job-aaaaaaaa")[0] == 2
