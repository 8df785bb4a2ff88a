from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from segfleet.cli import main, webhooks
from segfleet.client import Client
from segfleet.errors import AccessError, UnknownWebhookError, WebhookError
from segfleet.queue.leadership import Office
from segfleet.webhooks.courier import Courier
from serving import API_TOKEN, URL, AppTransport, Service

HOOK = "https://hooks.example.org/in"


@pytest.fixture
def cli(transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(webhooks, "Client", lambda: Client(URL, API_TOKEN, transport=transport))
    monkeypatch.setattr(webhooks, "_LOOK_EVERY_S", 0.0)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segfleet", "webhook", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


def courier(service: Service, status: int = 200) -> Courier:
    office = Office(service.queue.store, service.queue.clock, "server", lease_s=float("inf"))
    office.turn()
    desk = service.http.app.state.services.webhooks  # type: ignore[attr-defined]
    return Courier(service.queue.store, office, service.queue.clock, desk.secret_of, lambda *_: status)


def user(service: Service, name: str, transport: AppTransport, **more: Any) -> Client:
    body = {"user": name, "role": "user", **more}
    token = service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()["token"]
    return Client(URL, token, transport=transport)


def test_over_http_a_webhook_is_made_listed_tried_and_deleted(client: Client, service: Service) -> None:
    made = client.create_webhook(HOOK, ["submitted"], project="maps")
    assert made["secret"].startswith("whsec_")
    listed = client.webhooks()
    assert [one["id"] for one in listed] == [made["id"]]
    assert "secret" not in listed[0]
    service.submit(queue={"project": "maps"})
    tried = client.test_webhook(made["id"])
    rows = client.deliveries(made["id"])
    assert [(row["event"], row["state"]) for row in rows] == [("test", "pending"), ("submitted", "pending")]
    assert rows[0]["id"] == tried
    hands = courier(service)
    assert (hands.turn(), hands.turn(), hands.turn()) == (True, True, False)
    assert client.webhooks()[0]["deliveries"] == {"pending": 0, "delivered": 2, "dead": 0}
    client.delete_webhook(made["id"])
    with pytest.raises(UnknownWebhookError):
        client.deliveries(made["id"])
    with pytest.raises(WebhookError, match="https"):
        client.create_webhook("http://x.example.org", ["failed"])
    entries = service.http.get("/api/v1/audit", headers=service.bearer).json()["entries"]
    assert ("POST /webhooks", "local") in {(entry["action"], entry["who"]) for entry in entries}
    assert made["secret"] not in json.dumps(entries)


def test_users_see_and_change_their_own(client: Client, service: Service, transport: AppTransport) -> None:
    ann, bob = user(service, "ann", transport), user(service, "bob", transport)
    made = ann.create_webhook(HOOK, ["failed"], project="default")
    assert (bob.webhooks(), len(client.webhooks())) == ([], 1)
    for ask in (bob.delete_webhook, bob.test_webhook, bob.deliveries):
        with pytest.raises(AccessError, match="ann"):
            ask(made["id"])
    with pytest.raises(AccessError):
        bob.create_webhook(HOOK, ["failed"], project="maps")
    ann.delete_webhook(made["id"])


def test_the_commands(cli: Any, client: Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = cli("create", HOOK, "--events", "succeeded, failed")
    assert (code, out.startswith("whsec_"), "this once" in err) == (0, True, True)
    (found,) = client.webhooks()
    assert found["events"] == ["succeeded", "failed"]
    assert HOOK in cli("list")[1].replace("\n", "")
    monkeypatch.setattr(webhooks, "TEST_WAIT_S", 0.0)
    code, out, _ = cli("test", found["id"])
    assert (code, "not sent yet" in out) == (1, True)
    assert courier(service).turn()
    inner = Client.test_webhook

    def tried(self: Client, webhook_id: str) -> str:
        event = inner(self, webhook_id)
        assert courier(service).turn()
        return event

    monkeypatch.setattr(Client, "test_webhook", tried)
    code, out, _ = cli("test", found["id"], "--json")
    assert (code, json.loads(out)["state"]) == (0, "delivered")
    assert "delivered" in cli("deliveries", found["id"])[1]
    assert cli("create", "https://127.0.0.1/")[0] == 2
    assert cli("delete", found["id"])[0] == 0
    assert client.webhooks() == []
