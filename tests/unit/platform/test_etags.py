"""Entity tags: what is known is not sent again, and what has changed since is not changed."""

from __future__ import annotations

from typing import Any

import pytest

from segfleet.client import Client
from segfleet.errors import JobChangedError
from segfleet.server.etags import versions_in

JOBS = "/api/v1/jobs"
DIGEST = "0123456789abcdef"


def test_what_is_known_is_not_sent_again(service: Any) -> None:
    url = f"{JOBS}/{service.submit()['id']}"
    first = service.http.get(url, headers=service.bearer)
    tag = first.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", W/{tag}', "*"):
        again = service.http.get(url, headers={**service.bearer, "If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag), known
    for known in ('"other"', "", "other", tag.strip('"'), f"{tag} {tag}"[1:]):
        again = service.http.get(url, headers={**service.bearer, "If-None-Match": known})
        assert (again.status_code, again.content) == (200, first.content), known
    service.http.post(f"{url}/priority", json={"priority": 70}, headers=service.bearer)
    changed = service.http.get(url, headers={**service.bearer, "If-None-Match": tag})
    assert (changed.status_code, changed.json()["priority"]) == (200, 70)
    assert changed.headers["ETag"] != tag


@pytest.mark.parametrize(
    ("verb", "body"), [("priority", {"priority": 70}), ("pause", {}), ("resume", {}), ("cancel", {}), ("retry", {})]
)
def test_what_has_changed_since_is_not_changed(service: Any, verb: str, body: dict[str, Any]) -> None:
    job_id = service.submit()["id"]
    before = {"resume": "pause", "retry": "cancel"}.get(verb)
    if before:
        service.http.post(f"{JOBS}/{job_id}/{before}", json={}, headers=service.bearer)
    old = service.http.get(f"{JOBS}/{job_id}", headers=service.bearer)
    with service.queue.store.write() as tx:
        tx.change_job(tx.job(job_id), {"overtaken": 1})
    url = f"{JOBS}/{job_id}/{verb}"
    history = service.queue.events(job_id)
    for known in (old.headers["ETag"], f"W/{old.headers['ETag']}", '"mine"', ""):
        refused = service.http.post(url, json=body, headers={**service.bearer, "If-Match": known})
        assert (refused.status_code, refused.json()["code"]) == (412, "job_changed"), known
        assert service.queue.events(job_id) == history
    tag = service.http.get(f"{JOBS}/{job_id}", headers=service.bearer).headers["ETag"]
    done = service.http.post(url, json=body, headers={**service.bearer, "If-Match": f'"other", {tag}'})
    assert done.status_code == 200


def test_the_client_changes_what_it_has_seen(client: Client) -> None:
    job = client.submit({"kind": "prepare", "name": "shapes", "dataset": "synthetic", "out": "/data/shapes"})
    tag = client.tag(job["id"])
    assert client.set_priority(job["id"], 70, if_tag=tag)["priority"] == 70
    with pytest.raises(JobChangedError, match="look at it again"):
        client.cancel(job["id"], if_tag=tag)
    assert client.cancel(job["id"], if_tag=client.tag(job["id"]))["state"] == "cancelled"


@pytest.mark.parametrize(
    ("header", "versions"),
    [
        (None, None),
        (" * ", None),
        (f'"7-{DIGEST}"', {7}),
        (f'"7-{DIGEST}" , "8-{DIGEST}"', {7, 8}),
        (f'W/"7-{DIGEST}", "8-{DIGEST}"', {8}),
        (f'"7-{DIGEST}" "8-{DIGEST}"', set()),
        ("7", set()),
        (f'"{"9" * 19}-{DIGEST}"', set()),
        ("", set()),
    ],
)
def test_versions_of_a_list_of_tags(header: str | None, versions: set[int] | None) -> None:
    assert versions_in(header) == versions
