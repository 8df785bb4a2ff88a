from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from segfleet.cli import jobs, main, models, promotions, quotas
from segfleet.cli.main import exit_code
from segfleet.client import Client
from segfleet.errors import (
    DataError,
    IllegalTransitionError,
    LaunchError,
    ModelError,
    ServiceError,
    SettingsError,
    SpecError,
    UnknownJobError,
)
from serving import API_TOKEN, URL, AppTransport, Service

SPEC = "kind: prepare\nname: shapes\ndataset: synthetic\nout: /data/shapes\n"


class Cli:
    """Runs the command line in this process against the application under test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `segfleet ARGUMENTS`."""
        self.monkeypatch.setattr(sys, "argv", ["segfleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = self.capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        code = ended.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    def json(self, *arguments: str) -> Any:
        """The one document that a `--json` run prints."""
        code, out, _ = self(*arguments, "--json")
        assert code == 0
        return json.loads(out)


@pytest.fixture
def cli(transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def make_client(**options: Any) -> Client:
        return Client(URL, API_TOKEN, transport=transport, **options)

    for module in (jobs, models, promotions, quotas):
        monkeypatch.setattr(module, "Client", make_client)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.setenv("SEGFLEET_HOME", str(tmp_path / "nothing"))
    monkeypatch.delenv("SEGFLEET_URL", raising=False)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError([], "x"), 1),
        (DataError("x"), 1),
        (ServiceError("x"), 1),
        (LaunchError("x"), 1),
        (SettingsError("x"), 2),
        (UnknownJobError("job-x"), 2),
        (ModelError("x"), 2),
        (IllegalTransitionError("job-x", "succeeded", "cancel"), 2),
    ],
)
def test_exit_codes_tell_failure_from_wrong_use(error: Any, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["bogus"],
        ["up", "--port", "99999"],
        ["jobs", "--limit", "0"],
        ["jobs", "--state", "bogus"],
        ["models", "pull", "a@b"],
        ["submit", "nofile.yaml"],
        ["check", "."],
    ],
)
def test_a_wrong_command_line_is_wrong_use(arguments: list[str], offline: Cli) -> None:
    code, out, err = offline(*arguments)
    assert (code, out) == (2, "")
    assert "Usage:" in err


VERBS = "up down status download prepare verify inspect check submit jobs show logs cancel retry report predict"


MODEL_VERBS = [f"models {verb}" for verb in ("list", "show", "pull", "import", "export")]


@pytest.mark.parametrize("verb", [*VERBS.split(), *MODEL_VERBS])
def test_every_verb_has_help_with_an_example(verb: str, offline: Cli) -> None:
    code, out, _ = offline(*verb.split(), "--help")
    assert code == 0
    assert f"Example: segfleet {verb}" in out


def test_check_works_without_a_service_and_prints_the_full_spec(offline: Cli, spec: str) -> None:
    code, out, err = offline("check", spec, "--set", "samples=7")
    assert code == 0
    assert "samples: 7" in out
    assert "priority: 50" in out
    assert "is valid" in err


def test_check_tells_all_problems_at_once(offline: Cli, spec: str) -> None:
    code, out, err = offline("check", spec, "--set", "sampels=7", "--set", "seed=-1")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "did you mean 'samples'" in err
    assert "seed" in err


@pytest.mark.parametrize("change", ["foo", "=1", "a.b=[", "name.x=1"])
@pytest.mark.parametrize("verb", ["check", "submit"])
def test_a_malformed_change_is_wrong_use(offline: Cli, spec: str, verb: str, change: str) -> None:
    code, out, err = offline(verb, spec, "--set", change)
    assert (code, out) == (2, "")
    assert "--set" in err


def test_a_spec_that_is_no_yaml_is_invalid(offline: Cli, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("kind: [")
    assert offline("submit", str(path))[0] == 1


def test_a_refused_check_is_not_taken_for_a_missing_service(
    cli: Cli, transport: AppTransport, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "checked without" not in cli("check", spec)[2]
    monkeypatch.setattr(jobs, "Client", lambda **_: Client(URL, "wrong", transport=transport))
    code, out, err = cli("check", spec)
    assert (code, out) == (2, "")
    assert "send a token as" in err
    monkeypatch.setattr(jobs, "Client", lambda **_: Client("http://127.0.0.1:1", "t", patience_s=0.0))
    code, _, err = cli("check", spec)
    assert code == 0
    assert "checked without a service" in err


@pytest.mark.parametrize("key", ["", "nächt"])
def test_an_odd_key_is_wrong_use(cli: Cli, spec: str, key: str) -> None:
    code, out, err = cli("submit", spec, "--key", key)
    assert (code, out) == (2, "")
    assert "visible ASCII" in err


def test_check_in_json_lists_the_problems_on_stdout(offline: Cli, spec: str) -> None:
    code, out, _ = offline("check", spec, "--set", "seed=-1", "--json")
    assert code == 1
    document = json.loads(out)
    assert document["ok"] is False
    assert [problem["path"] for problem in document["problems"]] == ["seed"]


def test_without_a_service_a_verb_says_how_to_start_one(offline: Cli) -> None:
    code, out, err = offline("jobs")
    assert (code, out) == (2, "")
    assert "segfleet up" in err


def test_a_submitted_job_is_listed_shown_and_cancelled(cli: Cli, spec: str) -> None:
    code, out, _ = cli("submit", spec, "--set", "name=pictures")
    job_id = out.split()[0]
    assert code == 0
    assert "pictures" in out
    assert [job["id"] for job in cli.json("jobs")] == [job_id]
    assert job_id in cli("jobs", "--state", "queued")[1]
    assert "no such jobs" in cli("jobs", "--state", "running")[1]
    shown = cli.json("show", job_id)
    assert shown["spec"]["name"] == "pictures"
    assert shown["events"][0]["kind"] == "submitted"
    assert "submitted" in cli("show", job_id)[1]
    assert cli.json("cancel", job_id)["state"] == "cancelled"
    assert "queued again" in cli("retry", job_id)[1]
    assert cli("retry", job_id)[0] == 0, "asked again it changes nothing"


def test_the_same_key_gives_the_same_job(cli: Cli, spec: str) -> None:
    first = cli.json("submit", spec, "--key", "k")
    again = cli.json("submit", spec, "--key", "k")
    assert first["id"] == again["id"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    code, _, err = cli("submit", spec, "--key", "k", "--set", "seed=1")
    assert code == 2
    assert first["id"] in err


def test_an_invalid_spec_reaches_no_queue(cli: Cli, spec: str) -> None:
    code, out, _ = cli("submit", spec, "--set", "out=ftp://host/x")
    assert (code, out) == (1, "")
    assert cli.json("jobs") == []


def test_pause_resume_and_priority(cli: Cli, spec: str) -> None:
    job_id = cli.json("submit", spec)["id"]
    assert cli("pause", job_id)[1] == f"{job_id} is paused\n"
    assert cli.json("resume", job_id)["state"] == "queued"
    assert cli("priority", job_id, "70")[1] == f"{job_id} has priority 70\n"
    assert cli("resume", job_id)[0] == 0, "asked again it changes nothing"
    cli("cancel", job_id)
    code, _, err = cli("resume", job_id)
    assert code == 2
    assert "only paused jobs can be resumed" in err


def test_quotas_are_set_shown_changed_and_removed(cli: Cli) -> None:
    assert "no rules are set" in cli("quota", "show")[1]
    cli("quota", "set", "project:vision", "workers=8", "weight=2")
    assert cli.json("quota", "set", "project:vision", "max_workers=16", "weight=null")["rules"] == {
        "workers": 8,
        "max_workers": 16,
    }
    cli("quota", "set", "cluster", "preempt_for_priority=true", "grace=90s")
    out = cli("quota", "show")[1]
    assert "project:vision  workers=8, max_workers=16" in out
    assert "preempt_for_priority=True, grace=90s" in out
    code, _, err = cli("quota", "set", "project", "workers=8")
    assert code == 2
    assert "names nobody" in err
    code, _, err = cli("quota", "set", "project:vision", "wrokers=8")
    assert code == 1
    assert "wrokers" in err


def test_an_unknown_job_is_wrong_use(cli: Cli) -> None:
    for verb in ("show", "logs", "cancel", "retry", "pause", "resume"):
        code, out, err = cli(verb, "job-aaaaaaaa")
        assert (code, out) == (2, "")
        assert "there is no job 'job-aaaaaaaa'" in err


def test_follow_ends_with_the_outcome_and_its_exit_code(cli: Cli, service: Service, spec: str) -> None:
    job_id = cli.json("submit", spec, "--key", "k")["id"]
    attempt = service.start(job_id)
    token = service.claim(attempt).json()["token"]
    failure = {"failure": {"class": "user", "message": "no \x1b[31msuch folder"}}
    service.http.post(f"/api/v1/attempts/{attempt}/fail", json=failure, headers={"Authorization": f"Bearer {token}"})
    code, out, err = cli("submit", spec, "--key", "k", "--follow")
    assert code == 1
    assert "was submitted before" in out
    assert "failed (user): no such folder" in err
    assert f"segfleet logs {job_id}" in err
    code, out, _ = cli("submit", spec, "--key", "k", "--follow", "--json")
    assert code == 1
    assert json.loads(out)["state"] == "failed"


def test_logs_come_without_control_characters(cli: Cli, service: Service) -> None:
    job_id = service.submit()["id"]
    attempt = service.start(job_id)
    service.home.logs.joinpath(f"{attempt}.log").write_bytes(b"\x1b[32mstep\x1b[0m 1\nlast line")
    code, out, _ = cli("logs", job_id)
    assert code == 0
    assert out.endswith("\nstep 1\nlast line\n")


VERSION = {
    "name": "seg",
    "version": "1",
    "aliases": ["best"],
    "job": "job-aaaaaaaa",
    "run_id": "0" * 32,
    "created_at": 1.0,
    "metrics": {"miou": 0.51234},
    "tags": {"segfleet.dataset": "shapes\x1b[31m"},
}
MODEL = {"name": "seg", "aliases": {"best": "1"}, "latest_version": "1", "updated_at": 1.0}


def test_models_are_listed_and_shown(cli: Cli, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.registry, "models", lambda: [MODEL])
    monkeypatch.setattr(service.registry, "model", lambda name: {**MODEL, "versions": [VERSION]})
    monkeypatch.setattr(service.registry, "version", lambda name, ref: VERSION)
    assert cli.json("models", "list") == [MODEL]
    assert "@best -> 1" in cli("models", "list")[1]
    versions = cli("models", "show", "seg")[1]
    assert "0.5123" in versions
    assert "job-aaaaaaaa" in versions
    one = cli("models", "show", "seg@best")[1]
    assert "seg/1 (@best)" in one
    assert "shapes" in one
    assert "\x1b" not in one


def test_a_model_is_pulled_into_a_new_folder_once(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert cli.json("models", "pull", "seg@best", "--out", str(out))["folder"] == str(out)
    assert (out / "MLmodel").is_file()
    code, _, err = cli("models", "pull", "seg@best", "--out", str(out))
    assert code == 2
    assert "exists already" in err


def test_an_unknown_model_is_wrong_use(cli: Cli) -> None:
    code, out, err = cli("models", "show", "nothing@best")
    assert (code, out) == (2, "")
    assert "nothing" in err
