from __future__ import annotations

import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from factories import make_queue
from fakes import FakeClock
from segfleet.access import audit
from segfleet.access.desk import DEFAULT_LIFE_S, LAST_USED_EVERY_S, Access
from segfleet.access.roles import Role
from segfleet.access.tokens import HOME_PREFIX, id_of, is_digest_of, new_token
from segfleet.cli import access as access_cli
from segfleet.cli import main
from segfleet.client import Client
from segfleet.errors import AccessError, QueueUnavailableError, UnauthorizedError, UnknownTokenError
from segfleet.server.limits import Buckets, Rate
from segfleet.server.log import JsonFormatter
from segfleet.settings import ensure_token
from serving import API_TOKEN, URL, AppTransport, prepare_spec

HOME_TOKEN = "home-token-of-the-test"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def access(tmp_path: Path, clock: FakeClock, queue_url: str) -> Access:
    return Access(make_queue(tmp_path, clock, queue_url).store, clock, HOME_TOKEN)


def test_a_token_is_long_random_and_tells_what_it_is() -> None:
    tokens = {new_token() for _ in range(50)}
    assert len({token_id for token_id, _ in tokens}) == 50
    for token_id, token in tokens:
        assert token.startswith(f"segfleet_user_{token_id}_")
        assert len(token.rpartition("_")[2]) * 4 == 256
        assert id_of(token) == token_id
    for odd in ("", token[:-1], token + "0", token.upper(), f"{token}\n", token.replace("user", "home")):
        assert id_of(odd) is None


def test_digests_are_compared_whole_and_nothing_given_is_never_right() -> None:
    empty = hashlib.sha256(b"").hexdigest()
    assert not is_digest_of("", empty)
    assert not is_digest_of("x", empty)
    assert is_digest_of("x", hashlib.sha256(b"x").hexdigest())


def test_the_home_token_says_what_it_is(tmp_path: Path) -> None:
    assert ensure_token(tmp_path / "token", HOME_PREFIX).startswith("segfleet_home_")


def test_a_token_is_stored_only_as_its_digest(access: Access, queue_url: str) -> None:
    shown, token = access.create_token("ann", None, None, DEFAULT_LIFE_S, "local")
    engine = create_engine(queue_url)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM tokens")).one()._mapping
    engine.dispose()
    assert row["secret_hash"] == hashlib.sha256(token.encode()).hexdigest()
    secret = token.rpartition("_")[2]
    assert not [value for value in row.values() if secret in str(value)]
    assert secret not in json.dumps([shown, *access.tokens()])


def test_a_token_opens_until_it_expires_or_is_revoked(access: Access, clock: FakeClock) -> None:
    shown, token = access.create_token("ann", Role.OPERATOR, ["vision"], 100.0, "local")
    identity = access.identify(token)
    assert (identity.user, identity.role, identity.projects) == ("ann", Role.OPERATOR, frozenset({"vision"}))
    clock.advance(99.0)
    access.identify(token)
    clock.advance(1.0)
    with pytest.raises(UnauthorizedError, match="expired"):
        access.identify(token)
    assert access.tokens()[0]["state"] == "expired"
    _, forever = access.create_token("ann", None, None, None, "local")
    clock.advance(1e9)
    assert access.identify(forever).role == Role.OPERATOR
    assert access.revoke(shown["id"]) == access.revoke(shown["id"])
    access.revoke(str(id_of(forever)))
    with pytest.raises(UnauthorizedError, match="revoked"):
        access.identify(forever)
    with pytest.raises(UnknownTokenError):
        access.revoke("0123456789ab")


def test_a_wrong_secret_under_a_known_id_is_unknown(access: Access) -> None:
    _, token = access.create_token("ann", None, None, None, "local")
    for odd in (token[:-4] + "0000", f"segfleet_user_{'0' * 12}_{token.rpartition('_')[2]}"):
        with pytest.raises(UnauthorizedError, match="not known here"):
            access.identify(odd)


def test_a_later_token_changes_what_its_user_may(access: Access) -> None:
    _, first = access.create_token("ann", None, None, None, "local")
    assert (access.identify(first).role, access.identify(first).projects) == (Role.USER, frozenset({"default"}))
    access.create_token("ann", Role.VIEWER, ["maps"], None, "local")
    assert (access.identify(first).role, access.identify(first).projects) == (Role.VIEWER, frozenset({"maps"}))
    access.create_token("ann", None, None, None, "local")
    assert access.identify(first).role == Role.VIEWER


@pytest.mark.parametrize("name", ["local", "service", "job-aaaaaaaa-a1", "Ann", "", "a b", "1a", "a" * 64])
def test_names_that_are_none(access: Access, name: str) -> None:
    with pytest.raises(AccessError, match="cannot name a user"):
        access.create_token(name, None, None, None, "local")
    assert access.tokens() == []


def test_the_last_use_is_written_rarely(access: Access, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    _, token = access.create_token("ann", None, None, None, "local")
    access.identify(token)
    first = access.tokens()[0]["last_used_at"]
    clock.advance(LAST_USED_EVERY_S - 1)
    access.identify(token)
    assert access.tokens()[0]["last_used_at"] == first
    clock.advance(1.0)
    access.identify(token)
    assert access.tokens()[0]["last_used_at"] == first + LAST_USED_EVERY_S

    def locked() -> Any:
        raise QueueUnavailableError("locked")

    clock.advance(LAST_USED_EVERY_S)
    monkeypatch.setattr(access._store, "write", locked)
    assert access.identify(token).user == "ann"


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'x'", "DELETE FROM audit"])
def test_the_audit_log_is_only_appended_to(access: Access, queue_url: str, statement: str) -> None:
    access.record(audit.Entry(1.0, "ann", "id", "127.0.0.1", "POST /jobs", "job-x"), audit.DONE)
    engine = create_engine(queue_url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
    assert [entry["who"] for entry in access.audit(None, 10)] == ["ann"]


def test_an_entry_is_stored_with_its_change_or_not_at_all(access: Access) -> None:
    entry = audit.Entry(1.0, "ann", "id", "x" * 500, "POST /jobs", "y" * 500)
    with audit.recording(entry):
        with pytest.raises(ZeroDivisionError), access._store.write():
            _ = 1 / 0
        assert access.audit(None, 10) == []
        for _ in range(2):
            with access._store.write():
                pass
    assert audit.pending() is None
    assert [(e["outcome"], len(e["subject"])) for e in access.audit(None, 10)] == [("done", 256)]


def test_changes_and_refusals_are_in_the_audit_log(client: Client, service: Any, transport: AppTransport) -> None:
    made = client.create_token("ann", role="user")
    ann = Client(URL, made["token"], transport=transport)
    job = ann.submit(prepare_spec())
    foreign = client.submit(prepare_spec())
    with pytest.raises(AccessError, match="belongs to 'local'"):
        ann.cancel(foreign["id"])
    with pytest.raises(AccessError, match="needs the role operator"):
        ann.audit()
    ann.check(prepare_spec())
    ann.cancel(job["id"])
    entries = client.audit()["entries"]
    assert [(e["who"], e["action"], e["subject"], e["outcome"]) for e in entries] == [
        ("ann", "POST /jobs/{job_id}/cancel", job["id"], "done"),
        ("ann", "POST /jobs/{job_id}/cancel", foreign["id"], "403"),
        ("local", "POST /jobs", foreign["id"], "done"),
        ("ann", "POST /jobs", job["id"], "done"),
        ("local", "POST /tokens", f"user ann, token {made['id']}, role user, projects default", "done"),
    ]
    assert {e["address"] for e in entries} == {"testclient"}
    assert {e["token_id"] for e in entries} == {"home", made["id"]}
    assert made["token"] not in json.dumps(entries)


def test_the_audit_log_has_pages(client: Client) -> None:
    jobs = [client.submit(prepare_spec())["id"] for _ in range(5)]
    seen, before = [], None
    for _ in range(3):
        page = client.audit(before=before, limit=2)
        seen += [entry["subject"] for entry in page["entries"]]
        before = page["next"]
    assert (seen, before) == (jobs[::-1], None)


def test_buckets_refill_with_time_and_are_each_ones_own() -> None:
    clock = FakeClock()
    buckets = Buckets(Rate(burst=2, per_s=0.5), clock)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    assert buckets.take("b")
    clock.advance(2.0)
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    clock.advance(1000.0)
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]


def test_logs_show_no_token_wherever_it_stands() -> None:
    _, token = new_token()
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (f"lost {token} and segfleet_home_abc-_9",), None)
    line = json.loads(JsonFormatter().format(record))["message"]
    assert line == "lost [hidden] and [hidden]"


def test_the_command_line(
    client: Client, transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    who = {"token": API_TOKEN}
    monkeypatch.setattr(access_cli, "Client", lambda: Client(URL, who["token"], transport=transport))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segfleet", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    code, token, err = run("token", "create", "ann", "--project", "vision", "--expires", "never")
    assert (code, id_of(token.strip()) is not None) == (0, True)
    assert "role user, projects vision, expires never" in err
    made = json.loads(run("token", "create", "bob", "--role", "viewer", "--json")[1])
    assert (made["role"], id_of(made["token"])) == ("viewer", made["id"])
    listed = run("token", "list")[1]
    assert "ann" in listed
    assert token.strip() not in listed
    assert {t["user"] for t in json.loads(run("token", "list", "--json")[1])} == {"ann", "bob"}
    assert "POST /tokens user bob" in run("audit", "--limit", "1")[1]
    assert "is revoked" in run("token", "revoke", made["id"])[1]
    assert run("token", "revoke", "nothing")[0] == 2
    who["token"] = token.strip()
    code, out, err = run("token", "list")
    assert (code, out) == (2, "")
    assert "needs the role admin; 'ann' has the role user" in err


def test_a_whole_token_revokes_itself_and_stays_out_of_the_audit_log(client: Client) -> None:
    """Who found a lost token has nothing else to name it by."""
    token = client.create_token("ann")["token"]
    assert client.revoke_token(token)["state"] == "revoked"
    with pytest.raises(UnknownTokenError) as caught:
        client.revoke_token(token.replace("segfleet_user_", "segfleet_user_x"))
    log = json.dumps(client.audit())
    assert token not in log
    assert token.rpartition("_")[2] not in log + str(caught.value)
    assert "[hidden]" in log


def test_the_audit_log_says_which_rules_changed(client: Client) -> None:
    said = []
    for rules in ({"max_workers": 8}, {"max_workers": 16, "weight": 2}, {"weight": 2}, {"weight": 2}):
        client.set_policy("project", "vision", rules)
        said.append(client.audit()["entries"][0]["subject"])
    assert said == [
        "project vision: max_workers: null -> 8",
        "project vision: max_workers: 8 -> 16; weight: null -> 2",
        "project vision: max_workers: 16 -> null",
        "project vision: nothing changed",
    ]


def test_the_audit_log_says_what_was_granted(client: Client) -> None:
    client.create_token("bob", role="operator", projects=["vision", "maps"])
    assert "role operator, projects maps,vision" in client.audit()["entries"][0]["subject"]
