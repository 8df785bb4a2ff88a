"""What a job is told before it is submitted is what the scheduler then says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import prepare_document, train_document
from segfleet.cli.job_text import outlook_text
from segfleet.queue import scene
from segfleet.queue.scene import Outlook
from world import World


def busy(world: World, workers: int, **queue: Any) -> str:
    """A job at work."""
    job = world.submit(workers, **queue)
    world.step()
    world.claim(job)
    return job.id


@pytest.fixture
def four(tmp_path: Path, database_url: str) -> World:
    world = World(tmp_path, database_url)
    world.ray.cpus = 4
    world.step()
    return world


def told_and_true(world: World, document: dict[str, Any]) -> tuple[Outlook | None, tuple[Any, ...]]:
    """The outlook, and what the next pass says of the same job."""
    world.step(0.0)
    told = world.queue.outlook(document, "ann")
    job = world.queue.submit(document, owner="ann")[0]
    world.step(0.0)
    seen = world.queue.get(job.id)
    return told, (seen.state, seen.place, seen.reason, seen.starts_at)


def test_an_idle_cluster_starts_it_at_once(four: World) -> None:
    told, (state, *_) = told_and_true(four, train_document(4))
    assert told == Outlook(0, "", four.clock())
    assert state == "starting"
    assert outlook_text({"place": 0, "reason": "", "starts_at": 0.0}) == "it would start at once"


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda: train_document(4), id="behind"),
        pytest.param(lambda: train_document(4, priority=90), id="before"),
        pytest.param(lambda: train_document(1, time_limit="5m"), id="beside"),
        pytest.param(lambda: train_document(1, project="other"), id="another project"),
    ],
)
def test_it_tells_place_reason_and_time_of_the_next_pass(four: World, ask: Callable[[], dict[str, Any]]) -> None:
    busy(four, 3, time_limit="10m")
    four.submit(4, time_limit="20m")
    told, (state, place, reason, starts_at) = told_and_true(four, ask())
    assert told is not None
    if told.place == 0:
        assert state == "starting"
    else:
        assert (told.place, told.reason, told.starts_at) == (place, reason, starts_at)


def test_what_a_job_follows_is_told(four: World) -> None:
    parent = busy(four, 1)
    told, (_, place, reason, _) = told_and_true(four, train_document(1, after=[parent]))
    assert told == Outlook(1, f"after {parent} (running)", None)
    assert (place, reason) == (1, f"after {parent} (running)")


def test_a_second_writer_to_a_place_waits_for_the_first(four: World) -> None:
    first = four.queue.submit(prepare_document(), owner="ann")[0]
    told, (_, _, reason, _) = told_and_true(four, prepare_document(priority=40))
    assert told is not None
    assert told.reason == reason == f"after {first.id}, which writes to the same place"


def test_nobody_can_tell_without_a_cluster_or_over_a_very_long_line(
    four: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene, "MOST_WAITING", 1)
    four.submit(4, time_limit="1h")
    four.submit(4)
    four.submit(4)
    four.step()
    assert four.queue.outlook(train_document(1), "ann") is None
    monkeypatch.setattr(scene, "MOST_WAITING", 100)
    assert four.queue.outlook(train_document(1), "ann") is not None
    four.ray.reachable = False
    four.pass_time(60.0)
    assert four.queue.outlook(train_document(1), "ann") is None


def test_the_text_names_place_time_and_reason() -> None:
    told = {"place": 3, "reason": "needs 4 workers, has 1", "starts_at": None}
    assert outlook_text(told) == "it would wait at place 3: needs 4 workers, has 1"
    assert "to start in about" in outlook_text({**told, "starts_at": 4e9})
