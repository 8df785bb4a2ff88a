"""Checkpoints that are written while training goes on: copies, one at a time, errors by name, another try."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segfleet.errors import AttemptFencedError, CheckpointError, DataError
from segfleet_jobs.checkpoint import CheckpointRecord, load_checkpoint
from segfleet_jobs.checkpoint_store import FolderStore
from segfleet_jobs.checkpoint_writer import CheckpointWriter


class Gate(FolderStore):
    """Holds a write until it is let through, or refuses the first few."""

    def __init__(self, folder: Path, refuse: int = 0, error: Exception | None = None) -> None:
        super().__init__(folder, folder / "job-a1")
        self.open, self.begun = threading.Event(), threading.Event()
        self.refuse, self.error = refuse, error or OSError(errno.ENOSPC, "No space left on device")

    def save(
        self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> CheckpointRecord:
        self.begun.set()
        assert self.open.wait(10)
        if self.refuse:
            self.refuse -= 1
            raise self.error
        return super().save(step, model, state, meta)


class Heard:
    """What the writer tells."""

    def __init__(self) -> None:
        self.records: list[CheckpointRecord] = []
        self.messages: list[str] = []

    def writer(self, store: FolderStore, pauses_s: tuple[float, ...] = (0.0, 0.0)) -> CheckpointWriter:
        return CheckpointWriter(store, self.records.append, self.messages.append, pauses_s)


def start(writer: CheckpointWriter, step: int, weight: Tensor | None = None) -> None:
    weight = torch.full((3,), float(step)) if weight is None else weight
    writer.start(step, {"w": weight}, {"random/cpu/0": torch.zeros(2, dtype=torch.uint8)}, {"best": None})


def test_training_goes_on_and_changes_weights_while_the_copy_is_written(tmp_path: Path) -> None:
    store, heard, weight = Gate(tmp_path), Heard(), torch.ones(3)
    with heard.writer(store) as writer:
        start(writer, 1, weight)
        assert store.begun.wait(10)
        weight.zero_()
        assert writer.collect() is None
        assert heard.records == []
        store.open.set()
        record = writer.collect(wait=True)
        assert record is not None
        assert heard.records == [record]
        assert load_checkpoint(Path(record.path), record.sha256).model["w"].tolist() == [1.0, 1.0, 1.0]


def test_only_one_is_under_way(tmp_path: Path) -> None:
    store, heard = Gate(tmp_path), Heard()
    store.open.set()
    with heard.writer(store) as writer:
        start(writer, 1)
        with pytest.raises(RuntimeError, match="not collected"):
            start(writer, 2)
        writer.collect(wait=True)
        start(writer, 2)
    assert [record.step for record in heard.records] == [1, 2], "leaving the context waits"


def test_a_disk_that_is_full_for_a_while_is_told_of_once_and_tried_again(tmp_path: Path) -> None:
    store, heard = Gate(tmp_path, refuse=2), Heard()
    store.open.set()
    with heard.writer(store) as writer:
        start(writer, 1)
        assert writer.collect(wait=True) is not None
    assert len(heard.messages) == 1
    assert "step 1 cannot be written" in heard.messages[0]
    assert "No space left" in heard.messages[0]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), DataError("the store refuses: No space left")]
)
def test_a_disk_that_stays_full_ends_the_training_by_name(tmp_path: Path, error: Exception) -> None:
    store, heard = Gate(tmp_path, refuse=3, error=error), Heard()
    store.open.set()
    with heard.writer(store) as writer:
        start(writer, 1)
        with pytest.raises(CheckpointError, match=r"step 1 .*No space left.*segfleet retry"):
            writer.collect(wait=True)
    assert store.refuse == 0
    assert heard.records == []


def test_a_training_that_fails_does_not_wait_for_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, heard = Gate(tmp_path, refuse=2), Heard()
    store.open.set()
    refused = threading.Event()
    writer = CheckpointWriter(store, heard.records.append, lambda _: refused.set(), (3600.0,))
    writer.__enter__()
    start(writer, 1)
    assert refused.wait(10)
    # As a training leaves it that has failed by itself.
    writer.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert heard.records == []
    assert "the last checkpoint was not written" in capsys.readouterr().out


def test_a_pointer_that_is_refused_ends_the_training_and_deletes_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, tmp_path / "job-a1")

    def refuse(_: CheckpointRecord) -> None:
        raise AttemptFencedError("job-a1", "over")

    for step in (1, 2, 3):
        store.save(step, {}, {}, {"best": None})
    with CheckpointWriter(store, refuse, print) as writer:
        start(writer, 4)
        with pytest.raises(AttemptFencedError):
            writer.collect(wait=True)
    assert sorted(place.step for place in store.places()) == [1, 2, 3, 4]


def test_a_damaged_older_one_is_told_of_when_it_is_deleted(tmp_path: Path) -> None:
    store, heard = FolderStore(tmp_path, tmp_path / "job-a1"), Heard()
    record = store.save(1, {}, {}, {"best": None})
    (Path(record.path) / "state.safetensors").write_bytes(b"cut")
    with heard.writer(store) as writer:
        start(writer, 2)
    assert len(heard.messages) == 1
    assert "state.safetensors is damaged" in heard.messages[0]
    assert [place.step for place in store.places()] == [2]
