"""Ways round an alias' gate that must lead nowhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from promoting import CONTENT, Stage, end_evaluation
from segfleet.errors import ServiceError
from segfleet.promotion.evaluations import evaluation_spec
from segfleet.promotion.gate import Gate
from segfleet.registry import registry as registry_module
from segfleet.registry.card import model_card
from segfleet.registry.registry import Registry
from serving import Service


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text(json.dumps({"content_id": CONTENT}))
    return Stage(tmp_path, str(shards), None)


def mlflow_cannot_write(stage: Stage) -> Callable[[], None]:
    """Until what is returned is called."""
    real = stage.registry.set_alias

    def down(*_: Any) -> None:
        raise ServiceError("MLflow cannot write")

    def mend() -> None:
        stage.registry.set_alias = real  # type: ignore[method-assign]

    stage.registry.set_alias = down  # type: ignore[method-assign]
    return mend


@pytest.mark.parametrize(("version", "shards"), [("seg/3", None), ("seg/2", "/home/ann/easy")])
def test_a_user_s_own_job_under_the_promotion_s_key_decides_nothing(
    stage: Stage, version: str, shards: str | None
) -> None:
    stage.queue.set_policy("project", "default", {"max_queued": 0})
    stage.gate()
    asked = stage.ask("2")
    assert asked.why.startswith("waits to evaluate")
    forged = evaluation_spec(Gate.model_validate({"shards": shards or stage.shards}), version, "mine", "other")
    stage.queue.submit(forged, owner="ann", key=f"{asked.id}:candidate")
    stage.queue.set_policy("project", "default", {})
    stage.desk.advance_all()
    assert (stage.now(asked).state, stage.registry.moves) == ("refused", [])
    assert "does not evaluate seg/2 by the gate" in stage.now(asked).why


def test_evaluations_of_another_folder_do_not_count(stage: Stage) -> None:
    elsewhere = Gate.model_validate({"shards": "/home/ann/copy"})
    for version, miou in (("seg/2", 0.9), ("seg/1", 0.1)):
        job, _ = stage.queue.submit(evaluation_spec(elsewhere, version, "mine", "other"), owner="ann")
        end_evaluation(stage.queue, job.id, miou)
    stage.gate()
    assert stage.ask("2").state == "pending"


def test_what_was_asked_before_there_was_a_gate_does_not_pass_it(stage: Stage) -> None:
    mend = mlflow_cannot_write(stage)
    for version in ("2", "3"):
        with suppress(ServiceError):
            stage.ask(version)
    assert len(stage.desk.list("seg", 9)) == 2
    stage.gate(margin=0.5)
    mend()
    for _ in range(2):
        stage.desk.advance_all()
    assert stage.registry.moves == []
    assert {str(promotion.state) for promotion in stage.desk.list("seg", 9)} == {"stale"}


def test_a_gate_that_changes_before_the_alias_has_moved_counts(stage: Stage) -> None:
    stage.gate()
    asked = stage.ask("2")
    mend = mlflow_cannot_write(stage)
    assert stage.end(asked, 0.71, 0.70).state == "moving"
    stage.gate(margin=0.5)
    mend()
    stage.desk.advance_all()
    assert (stage.now(asked).state, stage.registry.moves) == ("stale", [])


def test_a_slow_mlflow_takes_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_WAIT_S", 0.0)
    registry = Registry("http://127.0.0.1:9")
    release, inside = threading.Event(), threading.Semaphore(0)

    def hang(*_: Any, **__: Any) -> list[Any]:
        inside.release()
        release.wait(30)
        return []

    monkeypatch.setattr(registry_module, "pages", hang)
    threads = [threading.Thread(target=registry.models) for _ in range(registry_module._AT_ONCE)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert inside.acquire(timeout=30)
    with pytest.raises(ServiceError, match="is slow: too many requests wait for it"):
        registry.models()
    release.set()
    for thread in threads:
        thread.join()
    assert registry.models() == []


def test_a_figure_that_is_none_is_refused(service: Service) -> None:
    job_id, attempt_id, headers = service.running()
    body = '{"run_id": "%s", "model_uri": "models:/m-1", "metrics": {"miou": NaN}, "tags": {}}' % ("a" * 32)
    url, kind = f"/api/v1/attempts/{attempt_id}/register", {"Content-Type": "application/json"}
    answer = service.http.post(url, content=body, headers=headers | kind)
    assert answer.status_code == 422, (job_id, answer.text)
    assert service.registry.registered == []


def test_odd_values_of_a_configuration_are_text_in_the_card() -> None:
    version = {"name": "seg", "version": "1", "aliases": [], "metrics": {}, "tags": {}, "job": None, "run_id": "r"}
    model = {"backbone": "x\n# BIG <img src=http://evil>\x1b]0;t\x07", "decoder": "\ud800", "num_classes": [1]}
    config = {"model": model, "window": {"window": {}}, "class_names": ["a"], "palette": [7]}
    card = model_card(version, config, ["a b](http://evil).png"])
    assert "\n# BIG" not in card
    assert "\\<img" in card
    assert card.count("<img") == 1
    assert "\x1b" not in card
    assert "](pictures/a%20b%5D%28http%3A//evil%29.png)" in card
