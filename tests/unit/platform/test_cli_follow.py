from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.console import Console

from segfleet.cli import follow
from segfleet.cli.follow import describe, follow_job, print_log


def make_job(state: str = "running", **changes: Any) -> dict[str, Any]:
    job = {"id": "job-aaaaaaaa", "state": state, "reason": "", "place": None, "progress": None}
    return {**job, "cancel_requested": False, **changes}


PROGRESS = {
    "step": 30,
    "num_steps": 100,
    "phase": "train",
    "loss": 1.25,
    "miou": 0.5,
    "samples_per_s": 8.0,
    "eta_s": 70,
}


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (make_job("queued", place=2, reason="behind job-x"), "queued, place 2: behind job-x"),
        (make_job("starting"), "starting"),
        (make_job(progress=PROGRESS), "train  loss 1.25  mIoU 0.5  samples/s 8  left 1m 10s"),
        (make_job(progress={"step": 1, "num_steps": 9, "loss": None}), "running"),
        (make_job(progress=PROGRESS, cancel_requested=True), "cancelling"),
        (make_job("cancelled", cancel_requested=True), "cancelled"),
    ],
)
def test_one_line_tells_where_a_job_is(job: dict[str, Any], text: str) -> None:
    assert describe(job) == text


@pytest.mark.parametrize("pieces", [["one\ntw", "o\nend"], ["o", "ne", "\n", "two\nend"], ["one\ntwo\nend"]])
def test_a_log_is_the_same_however_it_is_cut(pieces: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    print_log(pieces)
    assert capsys.readouterr().out == "one\ntwo\nend\n"


def test_an_escape_cut_in_two_is_removed_too(capsys: pytest.CaptureFixture[str]) -> None:
    print_log(["a\x1b", "[31mb\n"])
    assert capsys.readouterr().out == "ab\n"


class FakeClient:
    def __init__(self, jobs: list[dict[str, Any]], interrupted: bool = False) -> None:
        self.jobs, self.interrupted = jobs, interrupted

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        yield from self.jobs
        if self.interrupted:
            raise KeyboardInterrupt


def test_off_a_terminal_each_change_of_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [make_job("queued"), make_job("queued"), make_job(progress=PROGRESS), make_job("succeeded")]
    job = follow_job(FakeClient(jobs), "job-aaaaaaaa")  # type: ignore[arg-type]
    assert job["state"] == "succeeded"
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["queued", "step", "succeeded"]
    assert "step 30/100" in lines[1]


def test_a_long_state_is_told_again_now_and_then() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    times = iter([1.0, 2.0, 1.0 + follow.LINE_EVERY_S])
    follow._show_lines([make_job(progress=PROGRESS)] * 3, console, clock=lambda: next(times))
    assert len(out.getvalue().splitlines()) == 2


def test_a_terminal_gets_a_bar_with_steps_and_figures() -> None:
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=True, color_system=None)
    job = follow._show_live([make_job("queued"), make_job(progress=PROGRESS)], console)
    assert job["state"] == "running"
    assert "30/100" in out.getvalue()
    assert "loss 1.25" in out.getvalue()


def test_ctrl_c_leaves_the_job_alone_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped:
        follow_job(FakeClient([make_job()], interrupted=True), "job-aaaaaaaa")  # type: ignore[arg-type]
    assert stopped.value.exit_code == 130
    assert "goes on" in capsys.readouterr().err
