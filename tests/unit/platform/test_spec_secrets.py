from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from factories import make_settings
from fakes import FakeLauncher
from segfleet.access.tokens import new_token
from segfleet.queue.dispatcher import Dispatcher
from segfleet.spec.document import read_document
from segfleet.spec.resolve import resolve_spec, to_document
from segfleet.spec.secrets import secret_problems
from serving import API_TOKEN, CODE, Service, make_shards, prepare_spec
from world import lead

SPECS = sorted((Path(__file__).parents[3] / "jobs" / "specs").glob("*.yaml"))
HEX = "9f86d081884c7d659a2feaa0c55ad015"
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "an AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a GitLab token": "glpat-" + "a1B2" * 5,
    "a Hugging Face token": "hf_" + "a1B2" * 8,
    "a Slack token": "xoxb-" + "123456789012",
    "a Google API key": "AIza" + "a1B2c" * 7,
    "an API key": "sk-" + "a1B2" * 8,
    "a token of this service": new_token()[1],
    "a JSON web token": "eyJ" + "hbGciOiJ9." + "eyJ" + "zdWIiOiIx.x",
    "a password in an address": "https://ann:hunter2@host/data",
    "a password": "password=hunter2",
    "a private key": "-----BEGIN RSA PRIVATE" + " KEY-----",
    "a signed address": "https://h/x?X-Amz-Signature=" + HEX,
    "a secret": f"aws_secret_access_key: {HEX}",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_named_but_not_told(kind: str) -> None:
    document = {"a": [1, {"b": f"see {SECRETS[kind]} here"}], SECRETS[kind]: 1}
    first, second = secret_problems(document)
    assert (first.path, first.message) == ("a[1].b", f"looks like {kind}")
    assert (second.path, second.message) == ("key 2", f"looks like {kind}")
    assert SECRETS[kind] not in f"{first}{second}"


def test_a_field_s_name_can_tell_too() -> None:
    [problem] = secret_problems({"env": {"MY_TOKEN": HEX}})
    assert (problem.path, problem.message) == ("env.MY_TOKEN", "looks like a secret")
    assert secret_problems({"env": {"DIGEST": HEX}}) == []


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_no_ready_spec_looks_like_a_secret(path: Path) -> None:
    document = read_document(path)
    assert secret_problems(document) == secret_problems(to_document(resolve_spec(document))) == []


@pytest.mark.parametrize(
    "text",
    [
        "/data/password-protected/shards",
        "s3://bucket/tokens/ade20k_token_statistics_0123456789",
        "https://host:8080/a@b/c",
        "/mnt/secret-santa=2024/x",
        "task-force-sk-learn",
        "a" * 64,
        f"sha256:{HEX * 2}",
    ],
)
def test_what_is_none(text: str) -> None:
    assert secret_problems({"data": {"shards": text}}) == []


@pytest.mark.parametrize("path", ["/api/v1/check", "/api/v1/jobs"])
def test_a_spec_with_a_secret_is_refused_and_nothing_of_it_kept(service: Any, path: str) -> None:
    secret = SECRETS["a GitHub token"]
    for spec in (prepare_spec(out=f"/data/{secret}"), prepare_spec(nothing=secret), prepare_spec(**{secret: 1})):
        answer = service.http.post(path, json={"spec": spec}, headers=service.bearer)
        assert (answer.status_code, answer.json()["code"]) == (422, "spec_invalid")
        assert "looks like a GitHub token" in answer.text
        assert secret not in answer.text
    assert not found(service, secret)


def found(service: Service, *canaries: str) -> list[str]:
    """Where below the home a text is, whatever the file."""
    files = [path for path in service.home.root.rglob("*") if path.is_file()]
    assert any(path.name == "segfleet.db" for path in files)
    return [f"{path}: {c}" for path in files for c in canaries if c.encode() in path.read_bytes()]


def test_canaries_are_found_nowhere_after_a_whole_flow(
    service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    environment = f"canary-{secrets.token_hex(16)}"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", environment)
    caplog.set_level("DEBUG")
    token = service.http.post("/api/v1/tokens", json={"user": "ann"}, headers=service.bearer).json()["token"]
    ann, answers = {"Authorization": f"Bearer {token}"}, []
    ray = FakeLauncher()
    settings = make_settings(service.home.root)
    dispatcher = Dispatcher(service.queue, lead(service.queue), ray, settings)

    def ask(method: str, path: str, **request: Any) -> Any:
        answers.append(service.http.request(method, f"/api/v1{path}", **{"headers": ann, **request}))
        return answers[-1]

    spec = {"kind": "train", "name": "tiny", "data": {"shards": make_shards(tmp_path / "shards")}}
    job_id = ask("POST", "/jobs", json={"spec": spec}).json()["id"]
    for _ in range(3):
        dispatcher.step(service.queue.clock())
    [submission] = ray.jobs.values()
    code = submission.env["SEGFLEET_CODE"]
    claim = {"json": {"code": code, "instance": "0123456789abcdef"}, "headers": {}}
    grant = service.http.post(f"/api/v1/attempts/{job_id}-a1/claim", **claim).json()
    bearer = {"Authorization": f"Bearer {grant['token']}"}
    ask("POST", f"/attempts/{job_id}-a1/heartbeat", json={"progress": {"step": 1}}, headers=bearer)
    ask("POST", f"/jobs/{job_id}/cancel", json={})
    ask("POST", f"/attempts/{job_id}-a1/heartbeat", json={}, headers=bearer)
    for _ in range(3):
        dispatcher.step(service.queue.clock())
    for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", f"/jobs/{job_id}/logs", "/jobs", "/status", "/policies"):
        assert ask("GET", path).status_code == 200
    ask("GET", "/tokens", headers=service.bearer)
    ask("GET", "/audit", headers=service.bearer)
    ask("POST", "/jobs", headers={"Authorization": f"Bearer {token[:-1]}x"}, json={})
    canaries = (environment, token, token.rpartition("_")[2], API_TOKEN, grant["token"], code, CODE)
    said = "\n".join([*(answer.text for answer in answers), caplog.text, json.dumps(submission.env)])
    assert [c for c in canaries if c in said.replace(json.dumps(submission.env), "")] == []
    assert environment not in said
    assert found(service, *canaries) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("word", ["token", "-eyJaaaaaaaa", "password ", "api_key ", 'secret=" '])
def test_the_search_does_not_take_the_square_of_a_long_value(word: str) -> None:
    """Half an hour of it, at this length, in which the whole service would stand still."""
    secret_problems({"name": word * (600_000 // len(word))})
