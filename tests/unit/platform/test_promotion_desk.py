from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from promoting import CONTENT, Stage, end_evaluation
from segfleet.errors import ModelError, ModelRefusedError, ServiceError
from segfleet.promotion import desk as desk_module


@pytest.fixture
def stage(tmp_path: Path, queue_url: str) -> Stage:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text(json.dumps({"content_id": CONTENT}))
    return Stage(tmp_path, str(shards), queue_url)


class KilledError(BaseException):
    """Stands for kill -9."""


def test_without_a_gate_the_alias_moves_at_once_and_it_is_recorded(stage: Stage) -> None:
    made = stage.ask()
    assert (made.state, made.holder, made.version, made.who) == ("promoted", "1", "2", "ann")
    assert stage.registry.moves == [("best", "2")]
    assert stage.ask() == made
    assert stage.desk.list("seg", 10) == [made]
    assert stage.ask("@best") == made
    assert stage.queue.list() == ()


def test_a_gate_has_both_evaluated_once_and_promotes_the_better(stage: Stage) -> None:
    stage.gate(margin=0.01)
    made = stage.ask()
    assert made.state == "pending"
    assert stage.ask() == stage.now(made)
    stage.desk.advance_all()
    jobs = {job.id: job for job in stage.queue.list()}
    assert set(jobs) == set(stage.now(made).evaluations.values())
    assert {job.spec["model"] for job in jobs.values()} == {"seg/1", "seg/2"}
    assert {(job.owner, job.kind, job.spec["data"]["shards"]) for job in jobs.values()} == {
        ("ann", "evaluate", stage.shards)
    }
    end_evaluation(stage.queue, made.evaluations["candidate"], 0.72)
    stage.desk.advance_all()
    assert (stage.now(made).state, stage.registry.moves) == ("pending", [])
    end_evaluation(stage.queue, made.evaluations["holder"], 0.70)
    stage.desk.advance_all()
    ended = stage.now(made)
    assert (ended.state, stage.registry.moves) == ("promoted", [("best", "2")])
    assert "0.7200 against 0.7000" in ended.why
    assert {side: figures["value"] for side, figures in ended.figures.items()} == {"candidate": 0.72, "holder": 0.7}
    assert ended.figures["holder"]["job"] == made.evaluations["holder"]


def test_the_worse_is_refused_with_both_figures(stage: Stage) -> None:
    stage.gate()
    ended = stage.end(stage.ask(), 0.69, 0.70)
    assert (ended.state, stage.registry.moves) == ("refused", [])
    assert [figures["value"] for figures in ended.figures.values()] == [0.69, 0.7]
    # The same can be asked again, and rests on what was measured then.
    again = stage.ask()
    assert (again.id != ended.id, again.state, again.evaluations) == (True, "refused", ended.evaluations)


def test_evaluations_that_are_there_are_used_while_the_data_are_the_same(stage: Stage) -> None:
    stage.gate()
    stage.end(stage.ask(), 0.69, 0.70)
    count = len(stage.queue.list())
    third = stage.ask("3")
    assert len(stage.queue.list()) == count + 1
    end_evaluation(stage.queue, third.evaluations["candidate"], 0.71)
    assert stage.ask("3").state == "promoted"
    (Path(stage.shards) / "manifest.json").write_text(json.dumps({"content_id": "d" * 64}))
    other = stage.ask("2")
    assert len(stage.queue.list()) == count + 3
    assert stage.end(other, 0.9, 0.1, content_id="d" * 64).state == "promoted"


def test_a_deleted_models_evaluations_are_not_those_of_its_namesake(stage: Stage) -> None:
    stage.gate()
    stage.end(stage.ask(), 0.69, 0.70, mlflow_run="a" * 32)
    assert stage.ask().state == "pending"


@pytest.mark.parametrize(
    "rules",
    [
        {"split": "test"},
        {"eval": {"window": 32, "stride": 32}},
        {"tolerance": 0.1, "faster": 2.0, "resources": {"workers": 2}},
    ],
)
def test_other_evaluations_do_not_count(stage: Stage, rules: dict[str, Any]) -> None:
    stage.gate()
    stage.end(stage.ask(), 0.69, 0.70)
    stage.gate(**rules)
    asked = stage.ask()
    assert asked.state == "pending"
    assert len(stage.queue.list()) == 4


def test_of_two_promotions_at_once_one_wins_and_the_other_is_stale(stage: Stage) -> None:
    stage.gate()
    second, third = stage.ask("2"), stage.ask("3")
    assert second.evaluations["holder"] != third.evaluations["holder"]
    for promotion in (second, third):
        for side, value in (("candidate", 0.8), ("holder", 0.7)):
            end_evaluation(stage.queue, promotion.evaluations[side], value)
    barrier = threading.Barrier(2)
    real = stage.registry.holder

    def together(name: str, alias: str) -> str | None:
        found = real(name, alias)
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(timeout=0.2)
        return found

    stage.registry.holder = together  # type: ignore[method-assign]
    threads = [threading.Thread(target=stage.desk.advance, args=(stage.now(p),)) for p in (second, third)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage.desk.advance_all()
    states = sorted(str(stage.now(p).state) for p in (second, third))
    assert states == ["promoted", "stale"]
    assert len(stage.registry.moves) == 1
    loser = next(stage.now(p) for p in (second, third) if stage.now(p).state == "stale")
    assert "promote again" in loser.why


def test_two_services_on_one_database_move_an_alias_once(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask()
    for side, value in (("candidate", 0.8), ("holder", 0.7)):
        end_evaluation(stage.queue, asked.evaluations[side], value)
    first = stage.desk
    stage.restart()
    pending = stage.now(asked)
    for desk in (first, stage.desk):
        desk.advance(pending)
    assert (stage.now(asked).state, stage.registry.moves) == ("promoted", [("best", "2")])


def test_a_changed_holder_makes_a_promotion_stale(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask()
    stage.registry.aliases["best"] = "4"
    ended = stage.end(asked, 0.9, 0.1)
    assert (ended.state, stage.registry.moves) == ("stale", [])
    assert "version 4" in ended.why
    assert "promote again" in ended.why


@pytest.mark.parametrize("margin", [0.5, None])
def test_a_changed_or_removed_gate_makes_a_promotion_stale(stage: Stage, margin: float | None) -> None:
    stage.gate()
    asked = stage.ask()
    if margin is None:
        stage.desk.remove_gate("seg", "best")
    else:
        stage.gate(margin=margin)
    ended = stage.end(asked, 0.9, 0.1)
    assert (ended.state, stage.registry.moves) == ("stale", [])
    assert "gate was changed" in ended.why


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_move_in_mlflow_moves_the_alias_exactly_once(stage: Stage, when: str) -> None:
    stage.gate()
    asked = stage.ask()
    real = stage.registry.set_alias

    def dying(name: str, alias: str, version: str) -> None:
        if when == "after":
            real(name, alias, version)
        raise KilledError

    stage.registry.set_alias = dying  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        stage.end(asked, 0.8, 0.7)
    assert stage.now(asked).state == "moving"
    stage.registry.set_alias = real  # type: ignore[method-assign]
    stage.restart()
    # While a move is not finished, nobody else's begins.
    stage.desk._take_over_s = 60.0
    assert stage.ask("3").state == "pending"
    assert stage.ask("2").state == "moving"
    stage.clock.advance(61.0)
    stage.desk.advance_all()
    assert stage.now(asked).state == "promoted"
    assert stage.registry.moves.count(("best", "2")) == 1


def test_while_a_move_is_not_finished_no_other_begins(stage: Stage) -> None:
    real = stage.registry.set_alias

    def dying(name: str, alias: str, version: str) -> None:
        raise KilledError

    stage.registry.set_alias = dying  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        stage.ask("2")
    stage.registry.set_alias = real  # type: ignore[method-assign]
    cut_off = stage.desk.list("seg", 1)[0]
    stage.restart()
    stage.desk._take_over_s = 60.0
    waiting = stage.ask("3")
    assert (cut_off.state, waiting.state, stage.registry.moves) == ("moving", "pending", [])
    stage.clock.advance(61.0)
    stage.desk.advance_all()
    assert stage.registry.moves == [("best", "2"), ("best", "3")]
    # Whoever read the move before it was taken over changes nothing any more.
    with stage.queue.store.write() as tx:
        assert tx.promotions.change(cut_off, {"why": "late"}) is None


def test_a_move_is_taken_over_by_one(stage: Stage) -> None:
    real = stage.registry.set_alias
    stage.registry.set_alias = lambda *_: (_ for _ in ()).throw(KilledError())  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        stage.ask("2")
    stage.registry.set_alias = real  # type: ignore[method-assign]
    cut_off = stage.desk.list("seg", 1)[0]
    with stage.queue.store.write() as tx:
        assert tx.promotions.change(cut_off, {"mover": "another"}) is not None
    with stage.queue.store.write() as tx:
        assert tx.promotions.change(cut_off, {"mover": "a third"}) is None


def test_a_kill_before_the_decision_loses_no_promotion(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.gate()

    def dying(*_: object) -> None:
        raise KilledError

    submit = desk_module.submit_evaluation
    for real_calls in (0, 1):
        calls = iter([submit] * real_calls)
        monkeypatch.setattr(desk_module, "submit_evaluation", lambda *a, c=calls: next(c, dying)(*a))
        with pytest.raises(KilledError):
            stage.ask()
        stage.restart()
    monkeypatch.setattr(desk_module, "submit_evaluation", submit)
    stage.desk.advance_all()
    (promotion,) = stage.desk.list("seg", 10)
    assert len(stage.queue.list()) == 2
    assert stage.end(promotion, 0.8, 0.7).state == "promoted"


def test_an_mlflow_that_is_away_delays_and_decides_nothing(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask()
    real = stage.registry.holder

    def away(name: str, alias: str) -> str | None:
        raise ServiceError("MLflow does not answer")

    stage.registry.holder = away  # type: ignore[method-assign]
    assert stage.end(asked, 0.8, 0.7).state == "pending"
    with pytest.raises(ServiceError):
        stage.ask("3")
    stage.registry.holder = real  # type: ignore[method-assign]
    stage.desk.advance_all()
    assert stage.now(asked).state == "promoted"


def test_an_evaluation_that_fails_refuses_with_its_reason(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask()
    stage.queue.cancel(asked.evaluations["holder"], "ann")
    end_evaluation(stage.queue, asked.evaluations["candidate"], 0.9)
    stage.desk.advance_all()
    ended = stage.now(asked)
    assert (ended.state, stage.registry.moves) == ("refused", [])
    assert f"{asked.evaluations['holder']} of seg/1 has cancelled" in ended.why


def test_a_full_queue_delays_the_evaluations(stage: Stage) -> None:
    stage.queue.set_policy("user", "ann", {"max_queued": 0})
    stage.gate()
    asked = stage.ask()
    assert (asked.state, stage.queue.list()) == ("pending", ())
    assert "waits to evaluate" in asked.why
    stage.queue.set_policy("user", "ann", {})
    stage.desk.advance_all()
    assert stage.end(asked, 0.8, 0.7).state == "promoted"


def test_a_job_asks_once_however_often_its_attempts_do(stage: Stage) -> None:
    stage.gate()
    first = stage.ask(origin="job-aaaaaaaa/0")
    assert stage.end(first, 0.1, 0.7).state == "refused"
    assert stage.ask(origin="job-aaaaaaaa/0").id == first.id
    assert stage.ask(origin="job-aaaaaaaa/1").id != first.id


def test_the_first_holder_needs_a_score_and_no_opponent(stage: Stage) -> None:
    del stage.registry.aliases["best"]
    stage.gate()
    asked = stage.ask()
    assert asked.evaluations["holder"] is None
    end_evaluation(stage.queue, asked.evaluations["candidate"], 0.2)
    stage.desk.advance_all()
    assert (stage.now(asked).state, stage.registry.aliases) == ("promoted", {"best": "2"})


def test_a_version_that_is_gone_is_refused(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask()
    stage.registry.versions.discard("2")
    assert stage.end(asked, 0.8, 0.7).state == "refused"
    with pytest.raises(ModelError):
        stage.ask("77")


def test_what_is_needed_is_not_deleted(stage: Stage) -> None:
    with pytest.raises(ModelRefusedError, match="@best"):
        stage.desk.delete_version("seg", "1")
    stage.gate()
    asked = stage.ask()
    with pytest.raises(ModelRefusedError, match=asked.id):
        stage.desk.delete_version("seg", "2")
    stage.end(asked, 0.1, 0.7)
    assert stage.desk.delete_version("seg", "2")["version"] == "2"
    with pytest.raises(ModelError):
        stage.desk.delete_version("seg", "2")
