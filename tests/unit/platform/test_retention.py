"""Retention on real folders and databases: what goes, what stays, and what is written down about it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from factories import make_queue, prepare_document, train_document
from fakes import FakeClock
from segfleet.access.roles import Identity, Role
from segfleet.cli import main
from segfleet.cli import retention as verbs
from segfleet.client import Client
from segfleet.errors import IllegalTransitionError, ServiceError, SettingsError, SpecError
from segfleet.queue import fencing, lifecycle
from segfleet.queue.model import Job
from segfleet.queue.service import Queue
from segfleet.queue.states import FailureClass
from segfleet.retention import files
from segfleet.retention.desk import Retention
from serving import API_TOKEN, URL, AppTransport, FakeRegistry, Service

ADMIN = Identity("root", Role.ADMIN, frozenset(), "t")
DAY = 86_400.0
CODE = "code"


class Yard:
    """A queue with checkpoints on disk."""

    def __init__(self, root: Path, url: str) -> None:
        self.clock, self.models = FakeClock(), FakeRegistry()
        self.storage, self.logs = root / "storage", root / "logs"
        self.storage.mkdir()
        self.logs.mkdir()
        self.queue: Queue = make_queue(root, self.clock, url)
        self.desk = Retention(self.queue.store, self.clock, self.storage, self.logs, self.models)

    def checkpoint(self, folder: str, step: int, size: int = 100) -> str:
        path = self.storage / folder / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"\0" * size)
        return str(path)

    def job(self, ending: str = "succeeded", steps: tuple[int, ...] = (1, 2, 3), best: int = 1, **queue: Any) -> Job:
        """A job that has ended, with checkpoints of these steps; the last is the latest."""
        job, _ = self.queue.submit(train_document(**queue), owner="ann")
        with self.queue.store.write() as tx:
            attempt = lifecycle.begin_attempt(tx, tx.job(job.id), 1, fencing.digest(CODE), self.clock())
        token = self.queue.claim(attempt.id, CODE, "0123456789abcdef").token
        for step in steps:
            path = self.checkpoint(f"{job.id}/{attempt.id}", step)
            record = {"path": path, "step": step, "sha256": "a" * 64, "bytes": 100, "best_step": best}
            self.queue.set_checkpoint(attempt.id, token, record)
        (self.logs / f"{attempt.id}.log").write_text("log\n")
        with self.queue.store.write() as tx:
            now, alive = tx.job(job.id), tx.attempt(attempt.id)
            assert alive is not None
            if ending == "succeeded":
                lifecycle.succeed(tx, now, alive, {"best_step": best}, self.clock())
            elif ending == "failed":
                lifecycle.end_failed(tx, now, alive, FailureClass.USER, "no", now=self.clock(), lost=False)
            if ending != "running":
                tx.change_attempt(attempt.id, {"closed": True})
        return self.queue.get(job.id)

    def names(self) -> list[str]:
        return [piece.name.rpartition("/")[2] for _, piece in self.desk.plan()]

    def left(self, job: Job) -> list[str]:
        return sorted(path.name for path in (self.storage / job.id / f"{job.id}-a1").iterdir())


@pytest.fixture
def yard(queue_url: str, tmp_path: Path) -> Yard:
    return Yard(tmp_path, queue_url)


def test_nothing_goes_until_rules_are_set_and_time_has_passed(yard: Yard) -> None:
    job = yard.job()
    yard.clock.advance(100 * DAY)
    assert yard.desk.plan() == []
    assert yard.desk.apply(ADMIN) == ([], 0)
    yard.desk.set_rules({"checkpoints_after": "101d"})
    assert yard.desk.plan() == []
    yard.desk.set_rules({"checkpoints_after": "100d"})
    assert [(job_id, piece.bytes) for job_id, piece in yard.desk.plan()] == [(job.id, 100)]
    assert yard.left(job) == ["step-00000001", "step-00000002", "step-00000003"]


def test_best_and_latest_stay_and_the_rest_is_gone_audited_and_noted(yard: Yard) -> None:
    job = yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({"checkpoints_after": "1d", "logs_after": "1d"})
    gone, left = yard.desk.apply(ADMIN)
    assert (sorted(piece.name for _, piece in gone), left) == (
        [f"{job.id}-a1.log", f"{job.id}/{job.id}-a1/step-00000002"],
        0,
    )
    assert yard.left(job) == ["step-00000001", "step-00000003"]
    assert list(yard.logs.iterdir()) == []
    event = yard.queue.events(job.id)[-1]
    assert (event.kind, event.who, event.detail["message"], event.detail["is_latest"]) == (
        "checkpoint_deleted",
        "root",
        "checkpoint deleted by retention",
        False,
    )
    with yard.queue.store.read() as tx:
        entries = [(row.action, row.who, row.subject) for row in tx.access.audit(None, 10)]
    assert len(entries) == 2
    assert ("retention delete", "root", f"{job.id} checkpoint {job.id}/{job.id}-a1/step-00000002 100 bytes") in entries
    assert yard.queue.get(job.id).checkpoint == job.checkpoint
    assert yard.desk.plan() == []


def test_rules_can_be_changed_afterwards(yard: Yard) -> None:
    job = yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({"checkpoints_after": "1d"})
    yard.desk.apply(ADMIN)
    yard.desk.set_rules({"checkpoints_after": "1d", "keep_best": False, "keep_latest": False})
    yard.desk.apply(ADMIN)
    assert yard.left(job) == []
    assert yard.queue.get(job.id).checkpoint is None
    assert yard.desk.set_rules({})["checkpoints_after"] is None
    with yard.queue.store.read() as tx:
        assert tx.retention.rules() == {}


@pytest.mark.parametrize("rules", [{"odd": 1}, {"checkpoints_after": "soon"}, {"keep_best": "yes"}])
def test_wrong_rules_are_refused(yard: Yard, rules: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(rules))):
        yard.desk.set_rules(rules)


ALL = {"checkpoints_after": "1d", "logs_after": "1d", "keep_best": False, "keep_latest": False, "retry_for": "1d"}


def test_jobs_that_run_wait_or_are_followed_or_named_keep_all(yard: Yard) -> None:
    yard.job("running")
    followed, named, held = yard.job(), yard.job(), yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)
    yard.models.made_by = {held.id: ["seg/1"]}
    waiting, _ = yard.queue.submit(train_document(after=[followed.id]), owner="ann")
    document = {**prepare_document(), "out": f"/x/{named.id}/made"}
    yard.queue.submit(document, owner="ann")
    assert sorted(yard.names()) == sorted(["step-00000002", f"{held.id}-a1.log"])
    yard.queue.cancel(waiting.id, "ann")
    assert {job_id for job_id, _ in yard.desk.plan()} == {followed.id, held.id}


def test_a_job_that_comes_back_to_life_between_plan_and_deletion_keeps_all(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = yard.job("failed")
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)
    planned = yard.desk.plan()
    assert len(planned) == 4
    monkeypatch.setattr(yard.desk, "plan", lambda: planned)
    yard.queue.retry(job.id, "ann")
    assert yard.desk.apply(ADMIN) == ([], 0)
    yard.queue.cancel(job.id, "ann")
    follower, _ = yard.queue.submit(train_document(after=[f"{job.id}:any"]), owner="ann")
    assert yard.desk.apply(ADMIN) == ([], 0)
    assert len(yard.left(job)) == 3
    yard.queue.cancel(follower.id, "ann")
    assert len(yard.desk.apply(ADMIN)[0]) == 4


def test_a_retry_without_its_checkpoint_must_start_over_and_says_so(yard: Yard) -> None:
    job = yard.job("failed")
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({**ALL, "retry_for": "3d"})
    yard.desk.apply(ADMIN)
    assert yard.left(job) == ["step-00000001", "step-00000003"]
    yard.desk.set_rules(ALL)
    yard.desk.apply(ADMIN)
    assert yard.left(job) == []
    with pytest.raises(IllegalTransitionError, match="retention has deleted its checkpoint"):
        yard.queue.retry(job.id, "ann")
    assert yard.queue.retry(job.id, "ann", from_start=True).state == "queued"
    yard.queue.cancel(job.id, "ann")
    assert yard.queue.retry(job.id, "ann").state == "queued"


@pytest.mark.parametrize("killed_in", ["rename", "rmtree"])
def test_killed_in_between_the_next_one_goes_on(yard: Yard, monkeypatch: pytest.MonkeyPatch, killed_in: str) -> None:
    job = yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({"checkpoints_after": "1d"})

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    target: Any = Path if killed_in == "rename" else files.shutil
    with monkeypatch.context() as patch:
        patch.setattr(target, killed_in, kill)
        with pytest.raises(KeyboardInterrupt):
            yard.desk.apply(ADMIN)
    assert len(yard.left(job)) == 3
    assert len(yard.desk.apply(ADMIN)[0]) == 1
    assert yard.left(job) == ["step-00000001", "step-00000003"]


def test_trials_keep_their_own_best_and_latest(yard: Yard) -> None:
    job = yard.job(steps=())
    for number in (1, 2):
        for step in (1, 2, 3, 4):
            yard.checkpoint(f"{job.id}/trials/{number}/{job.id}-a1", step)
    pointer = {"path": str(yard.storage / job.id / f"trials/1/{job.id}-a1/step-00000004"), "step": 4, "best_step": 2}
    trial = {
        "kind": "trial", "params": {}, "state": "succeeded", "why": "", "step": 4, "num_steps": 4, "reports": [],
        "worker_seconds": 1.0, "attempt": 1, "created_at": 1.0, "updated_at": 1.0, "job_id": job.id,
    }  # fmt: skip
    with yard.queue.store.write() as tx:
        tx.trials.insert({**trial, "number": 1, "checkpoint": pointer, "best_step": 2})
        tx.trials.insert({**trial, "number": 2, "checkpoint": None, "best_step": 3})
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({"checkpoints_after": "1d"})
    kept = {(1, 2), (1, 4), (2, 3)}
    gone = {tuple(map(int, (p.name.split("/")[2], p.name[-1]))) for _, p in yard.desk.apply(ADMIN)[0]}
    assert gone == {(number, step) for number in (1, 2) for step in (1, 2, 3, 4)} - kept
    yard.desk.set_rules(ALL)
    yard.desk.apply(ADMIN)
    with yard.queue.store.read() as tx:
        assert [one["checkpoint"] for one in tx.trials.all_of(job.id)] == [None, None]
        assert tx.retention.has_lost_latest(job.id)
    assert {event.detail["trial"] for event in yard.queue.events(job.id) if event.kind == "checkpoint_deleted"} == {
        None,
        1,
    }


def test_links_are_neither_followed_nor_removed(yard: Yard, tmp_path: Path) -> None:
    job = yard.job()
    outside = tmp_path / "outside"
    (outside / "step-00000009").mkdir(parents=True)
    (outside / "step-00000009" / "file").write_text("mine")
    attempt = yard.storage / job.id / f"{job.id}-a1"
    (attempt / "step-00000008").symlink_to(outside / "step-00000009")
    (yard.storage / job.id / f"{job.id}-a2").symlink_to(outside)
    (yard.storage / job.id / "trials").symlink_to(outside)
    (attempt / "step-00000002" / "link").symlink_to(outside)
    (yard.logs / f"{job.id}-a9.log").symlink_to(outside / "step-00000009" / "file")
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)
    assert len(yard.desk.apply(ADMIN)[0]) == 4
    assert (outside / "step-00000009" / "file").read_text() == "mine"
    assert (attempt / "step-00000008").is_symlink()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "", "a/../../x", "link/x"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (tmp_path / "x").mkdir()
    (base / "link").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="nothing was removed"):
        files.remove(base, name)
    assert (tmp_path / "x").is_dir()


def test_runs_go_unless_a_version_comes_from_them(yard: Yard) -> None:
    job, held = yard.job(), yard.job()
    yard.models.runs = {job.id: ["r1", "r2"], held.id: ["r3"], "job-zzzzzzzz": ["r4"]}
    yard.models.made_by = {held.id: ["seg/1"]}
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules({"runs_after": "1d"})
    assert [piece.name for _, piece in yard.desk.apply(ADMIN)[0]] == ["r1", "r2"]
    assert yard.models.runs == {job.id: [], held.id: ["r3"], "job-zzzzzzzz": ["r4"]}


def test_without_the_registry_nobody_knows_what_is_needed(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    job = yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)

    def down() -> dict[str, list[str]]:
        raise ServiceError("MLflow does not answer")

    monkeypatch.setattr(yard.models, "versions_by_job", down)
    with pytest.raises(ServiceError):
        yard.desk.apply(ADMIN)
    assert len(yard.left(job)) == 3


def test_one_request_deletes_for_a_while_only(yard: Yard) -> None:
    yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)
    ticks = iter((0.0, 1.0, 2.0, 11.0, 12.0))
    gone, left = yard.desk.apply(ADMIN, lambda: next(ticks))
    assert (len(gone), left) == (2, 2)


def test_the_commands_and_routes(
    service: Service, transport: AppTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(URL, API_TOKEN, transport=transport)
    monkeypatch.setattr(verbs, "Client", lambda: Client(URL, API_TOKEN, transport=transport))

    def cli(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["segfleet", "retention", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    job_id, attempt_id, bearer = service.running()
    (service.home.logs / f"{attempt_id}.log").write_text("x" * 2048)
    assert service.http.post(f"/api/v1/attempts/{attempt_id}/complete", json={"result": {}}, headers=bearer).is_success
    with service.queue.store.write() as tx:
        tx.change_attempt(attempt_id, {"closed": True})
    assert "logs_after=null" in cli("show")[1]
    assert client.plan_retention() == {"pieces": [], "bytes": 0}
    assert "logs_after=1s" in cli("set", "logs_after=1s")[1]
    code, out = cli("plan")
    assert (code, "would go: 1 log of 1 job, 2.0 KiB" in out, job_id in out) == (0, True, True)
    assert cli("apply")[0] == 2
    code, out = cli("apply", "--yes", "--json")
    assert (code, json.loads(out)["bytes"]) == (0, 2048)
    assert list(client.apply_retention()) == [{"gone": [], "bytes": 0, "left": 0}]
    with pytest.raises(SpecError, match="odd"):
        client.set_retention({"odd": 1})
    assert client.set_retention({})["logs_after"] is None
    assert client.policies() == []
    body = {"user": "op", "role": "operator"}
    token = service.http.post("/api/v1/tokens", json=body, headers=service.bearer).json()["token"]
    answer = service.http.post("/api/v1/retention/apply", json={}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 403


def test_a_piece_that_cannot_be_removed_stands_in_nobodys_way(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    yard.job()
    yard.clock.advance(2 * DAY)
    yard.desk.set_rules(ALL)
    planned = [piece.name for _, piece in yard.desk.plan()]
    remove, stuck = files.remove, planned[0]

    def refuse(base: Path, name: str) -> bool:
        if name == stuck:
            raise PermissionError(1, "it belongs to somebody else")
        return remove(base, name)

    monkeypatch.setattr(files, "remove", refuse)
    gone, left = yard.desk.apply(ADMIN)
    assert ([piece.name for _, piece in gone], left) == (planned[1:], 1)
    with yard.queue.store.read() as tx:
        outcomes = [entry.outcome for entry in tx.access.audit(None, 100) if stuck in entry.subject]
    assert sorted(outcomes) == ["done", "failed"]
