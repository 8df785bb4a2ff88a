from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from factories import make_settings
from segfleet.errors import SettingsError
from segfleet.settings import Settings
from serving import CODE, Service
from world import World

LOGIN = {"MLFLOW_TRACKING_USERNAME": "jobs", "MLFLOW_TRACKING_PASSWORD": "h0rse-battery"}


def test_the_login_is_in_no_repr_and_in_no_public_environment(tmp_path: Path) -> None:
    settings = Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), **LOGIN})
    assert settings.mlflow_login == LOGIN
    assert "h0rse" not in repr(settings)
    assert "h0rse" not in str(settings.job_env)
    assert Settings.from_environment({"SEGFLEET_HOME": str(tmp_path)}).mlflow_login == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MLFLOW_TRACKING_USERNAME": "jobs"}, "MLFLOW_TRACKING_PASSWORD is not set"),
        ({"MLFLOW_TRACKING_PASSWORD": "h0rse"}, "MLFLOW_TRACKING_USERNAME is not set"),
        ({"SEGFLEET_MLFLOW_URI": "https://jobs:h0rse@mlflow.invalid"}, "holds a login"),
    ],
)
def test_half_a_login_or_one_in_the_address_is_refused(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        Settings.from_environment({"SEGFLEET_HOME": str(tmp_path), **variables})
    assert "h0rse" not in str(refused.value)


def test_what_ray_is_told_of_an_attempt_holds_no_login(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.settings = replace(make_settings(tmp_path), mlflow_login=LOGIN)
    world.restart()
    world.submit()
    world.step()
    (job,) = world.ray.jobs.values()
    assert "h0rse" not in f"{job.env} {job.command} {job.metadata}"


def test_a_claim_answers_with_the_login_and_nothing_else_does(service: Service) -> None:
    state = service.http.app.state  # type: ignore[attr-defined]
    settings = replace(state.services.settings, mlflow_login=LOGIN)
    object.__setattr__(state.services, "settings", settings)
    job_id = service.submit()["id"]
    attempt_id = service.start(job_id)
    assert "h0rse" not in service.claim(attempt_id, "wrong").text
    assert service.claim(attempt_id, CODE).json()["mlflow"] == LOGIN
    for path in ("/status", f"/jobs/{job_id}", f"/jobs/{job_id}/events", "/audit"):
        assert "h0rse" not in service.http.get(f"/api/v1{path}", headers=service.bearer).text
    database = Path(settings.home.root / "segfleet.db").read_bytes()
    assert b"h0rse" not in database
