"""Webhooks: events leave with the change they tell of, arrive at least once, signed, and reach nobody private."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from factories import make_queue, train_document
from fakes import FakeClock
from segfleet.access.roles import Identity, Role
from segfleet.door import webhook_hosts
from segfleet.errors import AccessError, DataError, SettingsError, UnknownWebhookError, WebhookError
from segfleet.queue.leadership import Office
from segfleet.queue.service import Queue
from segfleet.webhooks import signing
from segfleet.webhooks.courier import KEEP_S, Courier
from segfleet.webhooks.desk import MAX_OF_OWNER, Webhooks
from segfleet.webhooks.post import Post, check_url
from segfleet.webhooks.values import EVENTS, MAX_AGE_S, MAX_TRIES, after_failure

URL = "https://hooks.example.org/in"
ADMIN = Identity("root", Role.ADMIN, frozenset(), "t")
ANN = Identity("ann", Role.USER, frozenset({"default"}), "t")
BOB = Identity("bob", Role.USER, frozenset({"default"}), "t")


@dataclass
class Receiver:
    """Keeps what it gets; answers what it is told to, 204 after that; dies like a killed process if told `kill`."""

    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int | str] = field(default_factory=list)

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        answer = self.answers.pop(0) if self.answers else 204
        if answer == "down":
            raise httpx.ConnectError("refused")
        self.got.append((url, dict(headers), body))
        if answer == "kill":
            raise KeyboardInterrupt
        assert isinstance(answer, int)
        return answer

    @property
    def told(self) -> list[str]:
        return [json.loads(body)["type"] for _, _, body in self.got]


@dataclass
class Mail:
    """A queue with its webhooks and their courier."""

    queue: Queue
    clock: FakeClock
    desk: Webhooks
    courier: Courier
    receiver: Receiver

    def deliver(self) -> None:
        while self.courier.turn():
            pass

    def states(self, webhook: str) -> list[tuple[str, str, int]]:
        rows = self.desk.deliveries(webhook, ADMIN, 100)
        return [(row["event"], row["state"], row["tries"]) for row in reversed(rows)]


@pytest.fixture
def post(queue_url: str, tmp_path: Path) -> Mail:
    clock, receiver = FakeClock(), Receiver()
    queue = make_queue(tmp_path, clock, queue_url)
    office = Office(queue.store, clock, "server", lease_s=float("inf"))
    office.turn()
    desk = Webhooks(queue.store, clock, tmp_path / "webhook-key", frozenset())
    return Mail(queue, clock, desk, Courier(queue.store, office, clock, desk.secret_of, receiver), receiver)


def test_an_event_leaves_with_the_change_and_arrives_signed_without_the_spec(post: Mail) -> None:
    made, secret = post.desk.create(URL, ["submitted", "cancelled"], None, ADMIN)
    job, _ = post.queue.submit(train_document(), owner="ann")
    post.queue.pause(job.id, "ann")
    post.queue.cancel(job.id, "ann")
    post.deliver()
    assert post.receiver.told == ["job.submitted", "job.cancelled"]
    url, headers, body = post.receiver.got[1]
    document = json.loads(body)
    assert (url, headers["webhook-id"], headers["content-type"]) == (URL, document["id"], "application/json")
    assert document["data"] == {
        "job": job.id,
        "name": "shapes",
        "kind": "train",
        "project": "default",
        "owner": "ann",
        "state": "cancelled",
        "attempt": 0,
        "failure": None,
    }
    # As a receiver would, with nothing of ours.
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert made["deliveries"] == {"pending": 0, "delivered": 0, "dead": 0}
    assert post.states(made["id"]) == [("submitted", "delivered", 1), ("cancelled", "delivered", 1)]


def test_a_change_that_is_rolled_back_tells_nobody(post: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = post.desk.create(URL, ["submitted"], None, ADMIN)
    monkeypatch.setattr("segfleet.queue.store.Transaction.insert_key", _refuse)
    with pytest.raises(RuntimeError):
        post.queue.submit(train_document(), owner="ann", key="k")
    assert post.states(made["id"]) == []


def _refuse(*_: object) -> None:
    raise RuntimeError


def test_only_those_who_asked_hear_of_it(post: Mail) -> None:
    maps, _ = post.desk.create(URL + "/maps", ["submitted"], "maps", ADMIN)
    other, _ = post.desk.create(URL + "/other", ["failed"], None, ADMIN)
    post.queue.submit(train_document(project="default"), owner="ann")
    post.queue.submit(train_document(project="maps"), owner="ann")
    post.deliver()
    assert [url for url, _, _ in post.receiver.got] == [URL + "/maps"]
    assert post.states(other["id"]) == []
    assert len(post.states(maps["id"])) == 1


def test_every_event_is_one_of_the_history(post: Mail) -> None:
    made, _ = post.desk.create(URL, EVENTS, None, ADMIN)
    job, _ = post.queue.submit(train_document(), owner="ann")
    post.queue.pause(job.id, "ann")
    post.queue.resume(job.id, "ann")
    post.queue.cancel(job.id, "ann")
    post.queue.retry(job.id, "ann")
    kinds = [event.kind for event in post.queue.events(job.id)]
    assert [event for event, _, _ in post.states(made["id"])] == kinds
    assert kinds == ["submitted", "paused", "resumed", "cancelled", "retry_requested"]


def test_killed_between_sending_and_marking_it_is_sent_again_under_the_same_id(post: Mail) -> None:
    made, _ = post.desk.create(URL, ["submitted"], None, ADMIN)
    post.queue.submit(train_document(), owner="ann")
    post.receiver.answers = ["kill"]
    with pytest.raises(KeyboardInterrupt):
        post.courier.turn()
    office = Office(post.queue.store, post.clock, "server", lease_s=float("inf"))
    office.turn()
    post.courier = Courier(post.queue.store, office, post.clock, post.desk.secret_of, post.receiver)
    post.deliver()
    ids = [headers["webhook-id"] for _, headers, _ in post.receiver.got]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert post.states(made["id"]) == [("submitted", "delivered", 1)]


def test_what_is_refused_is_tried_again_later_and_nothing_overtakes_it(post: Mail) -> None:
    made, _ = post.desk.create(URL, ["submitted", "cancelled"], None, ADMIN)
    job, _ = post.queue.submit(train_document(), owner="ann")
    post.queue.cancel(job.id, "ann")
    post.receiver.answers = [500, "down", 302]
    post.deliver()
    assert (post.courier.turn(), len(post.receiver.got)) == (False, 1)
    for pause_s in (10.0, 20.0, 40.0):
        post.clock.advance(pause_s - 0.5)
        assert not post.courier.turn()
        assert post.states(made["id"])[1] == ("cancelled", "pending", 0)
        post.clock.advance(0.5)
        post.deliver()
    assert post.receiver.told == ["job.submitted", "job.submitted", "job.submitted", "job.cancelled"]
    assert post.states(made["id"]) == [("submitted", "delivered", 4), ("cancelled", "delivered", 1)]


def test_a_receiver_that_is_gone_gets_dead_events_and_holds_up_no_other(post: Mail) -> None:
    gone, _ = post.desk.create(URL, ["submitted"], None, ADMIN)
    post.queue.submit(train_document(), owner="ann")
    for _ in range(MAX_TRIES):
        post.receiver.answers = ["down"]
        post.deliver()
        post.clock.advance(1000.0)
    assert post.states(gone["id"]) == [("submitted", "dead", MAX_TRIES)]
    assert "refused" in post.desk.deliveries(gone["id"], ADMIN, 1)[0]["answer"]
    assert post.desk.webhooks(ADMIN)[0]["deliveries"]["dead"] == 1
    post.queue.submit(train_document(), owner="ann")
    post.deliver()
    assert post.states(gone["id"])[1] == ("submitted", "delivered", 1)
    post.clock.advance(KEEP_S + 2000.0)
    post.courier.turn()
    assert post.states(gone["id"]) == []


def test_pauses_grow_and_end() -> None:
    pauses = [after_failure(tries, 0.0) for tries in range(1, MAX_TRIES + 1)]
    assert pauses == [10, 20, 40, 80, 160, 320, 640, 900, 900, None]
    assert after_failure(1, MAX_AGE_S) is None


def test_two_threads_never_serve_one_webhook(post: Mail) -> None:
    post.desk.create(URL, ["submitted"], None, ADMIN)
    for _ in range(2):
        post.queue.submit(train_document(), owner="ann")
    seen: list[bool] = []
    send = post.receiver.__call__

    def nested(url: str, headers: Mapping[str, str], body: bytes) -> int:
        seen.append(post.courier.turn())
        return send(url, headers, body)

    post.courier._send = nested
    assert post.courier.turn()
    assert seen == [False]


def test_who_does_not_lead_delivers_nothing(post: Mail) -> None:
    post.desk.create(URL, ["submitted"], None, ADMIN)
    post.queue.submit(train_document(), owner="ann")
    follower = Office(post.queue.store, post.clock, "other", lease_s=15.0)
    assert not Courier(post.queue.store, follower, post.clock, post.desk.secret_of, post.receiver).turn()
    assert post.receiver.got == []


def test_users_have_webhooks_of_their_projects_and_touch_no_others(post: Mail) -> None:
    made, _ = post.desk.create(URL, ["failed"], "default", ANN)
    for project, words in ((None, "for operators"), ("maps", "no member")):
        with pytest.raises(AccessError, match=words):
            post.desk.create(URL, ["failed"], project, ANN)
    assert [one["id"] for one in post.desk.webhooks(ANN)] == [made["id"]]
    assert post.desk.webhooks(BOB) == []
    for ask in (post.desk.delete, post.desk.test, lambda *args: post.desk.deliveries(*args, 1)):
        with pytest.raises(AccessError, match="belongs to 'ann'"):
            ask(made["id"], BOB)
        with pytest.raises(UnknownWebhookError):
            ask("wh-0", ADMIN)
    post.desk.test(made["id"], ANN)
    post.deliver()
    assert post.receiver.told == ["test"]
    post.desk.delete(made["id"], ADMIN)
    assert post.desk.webhooks(ADMIN) == []


def test_nobody_has_webhooks_without_end(post: Mail) -> None:
    for _ in range(MAX_OF_OWNER):
        post.desk.create(URL, ["failed"], "default", ANN)
    with pytest.raises(WebhookError, match="delete one"):
        post.desk.create(URL, ["failed"], "default", ANN)
    for events, words in (([], "at least one"), (["odd"], "'odd'")):
        with pytest.raises(WebhookError, match=words):
            post.desk.create(URL, events, "default", BOB)


def test_the_database_holds_no_secret_and_the_key_is_private(post: Mail, tmp_path: Path) -> None:
    made, secret = post.desk.create(URL, ["submitted"], None, ADMIN)
    assert signing.shown(post.desk.secret_of(made["id"])) == secret
    assert (tmp_path / "webhook-key").stat().st_mode & 0o777 == 0o600
    post.desk.test(made["id"], ADMIN)
    post.deliver()
    with post.queue.store.read() as tx:
        stored = repr(tx.webhooks.webhooks()) + repr(tx.webhooks.deliveries(made["id"], 10))
    assert secret.removeprefix("whsec_") not in stored
    other, secret_2 = post.desk.create(URL, ["submitted"], None, ADMIN)
    assert (secret_2 != secret, other["id"] != made["id"]) == (True, True)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.org/",
        "ftp://hooks.example.org/",
        "https://user:pass@hooks.example.org/",
        "https://hooks.example.org/#x",
        "https://",
        "https://127.0.0.1/",
        "https://localhost:8700/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fd00:ec2::254]/",
        "https://0.0.0.0/",
        "https://a.localhost/",
        "https://hooks.example.org:99999/",
        "https://hooks.example.org/" + "x" * 2000,
        "https://hooks.example.org/\r\nX: y",
    ],
)
def test_addresses_that_no_event_may_go_to_are_refused(url: str) -> None:
    with pytest.raises(WebhookError):
        check_url(url, frozenset())


def test_the_operator_allows_one_private_port_and_no_other() -> None:
    allowed = webhook_hosts({"SEGFLEET_WEBHOOK_HOSTS": "127.0.0.1:9000, CI.intern:443,[::1]:80"})
    assert allowed == {("127.0.0.1", 9000), ("ci.intern", 443), ("::1", 80)}
    check_url("http://127.0.0.1:9000/x", allowed)
    check_url("https://ci.intern/x", allowed)
    for url in ("http://127.0.0.1:9001/", "http://ci.intern:443/", "http://ci.intern/"):
        with pytest.raises(WebhookError):
            check_url(url, allowed)
    for text in ("ci.intern", ":9", "a:b", "a:0"):
        with pytest.raises(SettingsError):
            webhook_hosts({"SEGFLEET_WEBHOOK_HOSTS": text})


def test_a_name_that_leads_home_is_refused_when_something_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(DataError, match="not a public host"):
        Post(frozenset())("https://rebound.example.org/", {}, b"{}")


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.rfile.read(int(self.headers["content-length"]))))  # type: ignore[attr-defined]
        if self.path == "/drip":
            try:
                for _ in range(100):
                    self.wfile.write(b"H")
                    self.server.done.wait(0.02)  # type: ignore[attr-defined]
            except OSError:
                self.server.cut.set()  # type: ignore[attr-defined]
            self.server.done.set()  # type: ignore[attr-defined]
            return
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.asked, server.done, server.cut = [], threading.Event(), threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.done.set()  # type: ignore[attr-defined]
        server.shutdown()
        thread.join()


def test_a_request_follows_no_redirect_and_ends_in_time(receiver: Any) -> None:
    port = receiver.server_port
    send = Post({("127.0.0.1", port)}, silence_s=5.0, total_s=0.2)
    assert send(f"http://127.0.0.1:{port}/in", {"webhook-id": "evt"}, b"{}") == 200
    assert send(f"http://127.0.0.1:{port}/away", {}, b"{}") == 302
    assert receiver.asked == [("/in", b"{}"), ("/away", b"{}")]
    with pytest.raises(httpx.HTTPError):
        send(f"http://127.0.0.1:{port}/drip", {}, b"{}")
    assert receiver.done.wait(10.0)
    assert receiver.cut.is_set()
