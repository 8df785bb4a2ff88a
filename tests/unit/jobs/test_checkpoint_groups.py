"""Checkpoints of a group of workers that was cut off and wakes up: it spoils nothing of the group that follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segfleet_jobs.checkpoint import CheckpointRecord
from segfleet_jobs.checkpoint_bucket import open_checkpoints
from segfleet_jobs.checkpoint_store import FolderStore, discard_earlier, find_step, load_latest, prune


def store(folder: Path, attempt: int = 1, group: int = 1) -> FolderStore:
    found = open_checkpoints(folder, f"job-a{attempt}", group)
    assert isinstance(found, FolderStore)
    return found


def save(of: FolderStore, step: int, value: float = 0.0) -> CheckpointRecord:
    return of.save(step, {"w": torch.full((4, 4), value)}, {"s": torch.arange(3)}, {"best": None})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def test_each_group_writes_to_places_of_its_own(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, group=2)
    save(first, 10)
    record = save(second, 20, 2.0)
    late = save(first, 20, 1.0)  # what was under way when the machine was cut off
    assert names(tmp_path) == ["job-a1/step-00000010", "job-a1/step-00000020", "job-a1/step-00000020.2"]
    assert late.path != record.path
    found, damaged = load_latest(second, record)
    assert found is not None
    assert (found.model["w"][0, 0].item(), damaged) == (2.0, [])
    assert find_step(store(tmp_path, attempt=2), 20) == record.path


def test_a_group_that_wakes_up_deletes_nothing_of_the_next_one(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, group=2)
    save(first, 10)
    pointer = save(first, 20)  # cut off here, before it tidied up
    for step in (30, 40):
        latest = save(second, step)
    (tmp_path / "job-a1" / ".writing-00000050-7.2").mkdir()
    prune(first, pointer)
    discard_earlier(first)
    assert {"job-a1/step-00000030.2", "job-a1/step-00000040.2", "job-a1/.writing-00000050-7.2"} < set(names(tmp_path))
    prune(second, latest)
    assert names(tmp_path) == ["job-a1/step-00000030.2", "job-a1/step-00000040.2"]


def test_what_a_group_wrote_after_it_was_given_up_is_tidied_away_and_not_gone_on_from(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, group=2)
    save(second, 20)
    pointer = save(second, 30)
    save(first, 60)
    (tmp_path / "job-a1" / ".writing-00000070-7.1").mkdir()
    found, _ = load_latest(second, pointer)
    assert found is not None
    assert found.step == 30
    prune(second, pointer)
    assert names(tmp_path) == ["job-a1/step-00000020.2", "job-a1/step-00000030.2"]


@pytest.mark.parametrize("group", [1, 2, 11])
def test_a_later_group_and_a_later_attempt_come_after(tmp_path: Path, group: int) -> None:
    save(store(tmp_path, group=group), 10)
    (place,) = store(tmp_path).places()
    assert place.writer == (1, group)
    discard_earlier(store(tmp_path, group=group))
    assert store(tmp_path).places() == [place]
    discard_earlier(store(tmp_path, attempt=2))
    assert store(tmp_path).places() == []
