from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from promoting import CONTENT, end_evaluation
from segfleet.cli import main, models, promotions
from segfleet.client import Client
from segfleet.errors import ModelError, ModelRefusedError, SpecError
from serving import API_TOKEN, URL, AppTransport, Service

API = "/api/v1"


@pytest.fixture
def shards(service: Service) -> str:
    folder = service.home.root / "shards"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"content_id": CONTENT}))
    return str(folder)


def bearer(service: Service, user: str, role: str, **more: Any) -> dict[str, str]:
    body = {"user": user, "role": role, **more}
    token = service.http.post(f"{API}/tokens", json=body, headers=service.bearer).json()["token"]
    return {"Authorization": f"Bearer {token}"}


def run(
    transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    for module in (models, promotions):
        monkeypatch.setattr(module, "Client", lambda: Client(URL, API_TOKEN, transport=transport))
    monkeypatch.setattr(sys, "argv", ["segfleet", "models", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


def test_gates_are_set_shown_and_removed(client: Client, shards: str) -> None:
    made = client.set_gate("seg", "best", {"shards": shards, "margin": 0.01})
    assert (made["rules"]["margin"], made["rules"]["split"], made["set_by"]) == (0.01, "val", "local")
    assert client.gates("seg") == [made]
    client.set_gate("seg", "best", {"shards": shards})
    assert [gate["rules"]["margin"] for gate in client.gates("seg")] == [0.0]
    client.remove_gate("seg", "best")
    assert client.gates("seg") == []
    with pytest.raises(ModelError, match="no gate"):
        client.remove_gate("seg", "best")


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, "shards"),
        ({"shards": "/d", "margin": 2}, "margin"),
        ({"shards": "/d", "odd": 1}, "odd"),
        ({"shards": "/d", "tolerance": 0.1}, "belong together"),
        ({"shards": "/d", "eval": {"window": 16, "stride": 17}}, "stride 17"),
        ({"shards": "s3://AKIAIOSFODNN7EXAMPLE:x@b/d"}, ""),
    ],
)
def test_a_wrong_gate_is_refused_with_the_place(client: Client, rules: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        client.set_gate("seg", "best", rules)
    assert words in str(refused.value)
    assert "AKIA" not in str(refused.value)
    assert client.gates("seg") == []


def test_a_promotion_is_accepted_then_done_and_kept(client: Client, service: Service, shards: str) -> None:
    client.set_gate("seg", "best", {"shards": shards})
    body = {"alias": "best", "version": "2"}
    answer = service.http.post(f"{API}/models/seg/promotions", json=body, headers=service.bearer)
    assert answer.status_code == 202
    asked = answer.json()
    assert client.promote("seg/2", "best")["id"] == asked["id"]
    for job in client.promotions("seg")[0]["evaluations"].values():
        end_evaluation(service.queue, job, 0.8 if service.queue.get(job).spec["model"] == "seg/2" else 0.7)
    ended = client.promote("seg/2", "best")
    assert (ended["state"], ended["figures"]["holder"]["value"]) == ("promoted", 0.7)
    assert list(client.watch_promotion("seg", asked["id"])) == [ended]
    assert service.http.post(f"{API}/models/seg/promotions", json=body, headers=service.bearer).status_code == 200
    assert service.registry.moves == [("best", "2")]
    with pytest.raises(ModelError):
        next(client.watch_promotion("seg", "pro-0"))


def test_who_promotes_and_sets_gates(service: Service, shards: str) -> None:
    ann, bob = bearer(service, "ann", "user", projects=["vision"]), bearer(service, "bob", "viewer")
    ask = {"alias": "best", "version": "2"}
    gates, wishes = f"{API}/models/seg/gates/best", f"{API}/models/seg/promotions"
    assert service.http.put(gates, json={"rules": {"shards": shards}}, headers=ann).status_code == 403
    assert service.http.put(gates, json={"rules": {"shards": shards}}, headers=service.bearer).status_code == 200
    assert service.http.post(wishes, json=ask, headers=bob).status_code == 403
    assert service.http.post(wishes, json={**ask, "project": "maps"}, headers=ann).status_code == 403
    made = service.http.post(wishes, json=ask, headers=ann).json()
    assert (made["who"], made["project"]) == ("ann", "vision")
    assert {job.owner for job in service.queue.list()} == {"ann"}
    entries = service.http.get(f"{API}/audit", headers=service.bearer).json()["entries"]
    told = {(entry["action"], entry["who"], entry["outcome"]) for entry in entries}
    assert ("PUT /models/{name}/gates/{alias}", "local", "done") in told
    assert ("POST /models/{name}/promotions", "ann", "done") in told
    assert ("PUT /models/{name}/gates/{alias}", "ann", "403") in told


def test_a_training_with_a_gated_alias_opens_a_promotion(client: Client, service: Service, shards: str) -> None:
    client.set_gate("seg", "champion", {"shards": shards})
    spec = {
        "kind": "train",
        "name": "tiny",
        "data": {"shards": shards},
        "register": {"model": "seg", "alias": "champion"},
    }
    job_id = client.submit(spec)["id"]
    attempt_id = service.start(job_id)
    token = service.claim(attempt_id).json()["token"]
    body = {"run_id": "b" * 32, "model_uri": "models:/m-1", "metrics": {}, "tags": {}}
    answers = [
        service.http.post(
            f"{API}/attempts/{attempt_id}/register", json=body, headers={"Authorization": f"Bearer {token}"}
        ).json()
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert (answers[0]["version"], answers[0]["alias"]) == ("1", None)
    assert (service.registry.moves, service.registry.aliases) == ([], {"best": "1"})
    (promotion,) = client.promotions("seg")
    assert (promotion["id"], promotion["state"]) == (answers[0]["promotion"], "pending")
    end_evaluation(service.queue, promotion["evaluations"]["candidate"], 0.5)
    assert client.promote("seg/1", "champion")["state"] == "promoted"


def test_an_import_goes_through_the_gate_too(client: Client, service: Service, shards: str) -> None:
    client.set_gate("seg", "champion", {"shards": shards})
    body = {"run_id": "b" * 32, "model_uri": "models:/m-1", "content_digest": "a" * 64, "alias": "champion"}
    made = client.register_model("seg", **body)  # type: ignore[arg-type]
    assert (made["alias"], service.registry.moves) == (None, [])
    assert client.promotions("seg")[0]["id"] == made["promotion"]


def test_versions_are_deleted_by_operators_unless_needed(client: Client, service: Service) -> None:
    ann = bearer(service, "ann", "user")
    assert service.http.request("DELETE", f"{API}/models/seg/2", json={}, headers=ann).status_code == 403
    with pytest.raises(ModelRefusedError, match="@best"):
        client.delete_version("seg/1")
    deleted = client.delete_version("seg/2")
    assert (deleted["name"], deleted["version"]) == ("seg", "2")
    assert "run" in deleted["stays"][0]
    assert service.registry.versions == {"1"}


def test_a_version_that_a_job_evaluates_is_needed(client: Client, service: Service, shards: str) -> None:
    spec = {"kind": "evaluate", "name": "e", "model": "seg/2", "data": {"shards": shards}}
    job_id = client.submit(spec)["id"]
    with pytest.raises(ModelRefusedError, match=job_id):
        client.delete_version("seg/2")
    client.cancel(job_id)
    assert client.delete_version("seg/2")["version"] == "2"


def test_the_commands_tell_how_a_promotion_went(
    client: Client,
    service: Service,
    shards: str,
    transport: AppTransport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def cli(*arguments: str) -> tuple[int, str, str]:
        return run(transport, monkeypatch, capsys, *arguments)

    monkeypatch.chdir(Path(shards).parent)
    window = tmp_path / "eval.yaml"
    window.write_text("window: 32\nstride: 24\n")
    code, out, _ = cli("gate", "seg", "--alias", "best", "--shards", "shards", "--eval", str(window))
    assert code == 0
    assert f"miou on {shards} (val, window 32) better by at least 0" in out
    code, out, _ = cli("promote", "seg/2", "--alias", "best", "--no-wait", "--json")
    asked = json.loads(out)
    assert (code, asked["state"]) == (0, "pending")
    for side, value in (("candidate", 0.6), ("holder", 0.7)):
        end_evaluation(service.queue, asked["evaluations"][side], value)
    service.http.app.state.services.promotions.advance_all()  # type: ignore[attr-defined]
    code, out, err = cli("promote", "seg/2", "--alias", "best")
    assert (code, "refused" in err) == (1, True)
    assert "miou 0.6000 against 0.7000" in out
    shown = cli("show", "seg")[1]
    assert "gate of @best" in shown
    assert "0.6 / 0.7" in shown
    assert cli("gate", "seg", "--alias", "best", "--remove")[1].startswith("seg has no gates")
    assert cli("delete", "seg@best")[0] == 2
    assert cli("delete", "seg/1")[0] == 2
    code, out, _ = cli("delete", "seg/2")
    assert (code, "stays: MLflow's run" in out) == (0, True)
